/* Waypost for C: two game players meet, connect directly if their networks allow it, and are relayed if not.
 *
 * Made by cbindgen from client/c/src; the test "header" fails if this file is stale, and says how to make it anew.
 * Link with -lwaypost (or libwaypost.a -lpthread -ldl -lm). The example is client/c/examples/talk.c.
 *
 * Every function that can fail returns a status: WAYPOST_OK (0) or a negative one; waypost_error_text says what happened and
 * what to do. Texts are UTF-8 and end with a null byte. Buffers belong to the caller; no pointer is kept after a call. A session
 * may be used by several threads at a time; only waypost_session_free must be the last. The library calls nothing back.
 */

#ifndef WAYPOST_H
#define WAYPOST_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

// Counts changes of this interface after which a program has to be compiled anew.
#define WAYPOST_ABI 2

// Directly once that is proven; through the relay until then.
#define WAYPOST_DIRECT_FIRST 0

// Through the relay as long as the server answers.
#define WAYPOST_RELAY_FIRST 1

// Only through the relay: nobody learns this player's address.
#define WAYPOST_RELAY_ONLY 2

// Never through the relay.
#define WAYPOST_DIRECT_ONLY 3

// Somebody is in the session: `member`.
#define WAYPOST_MEMBER_JOINED 1

// Somebody is not any more: `member`; `detail` is why, `WAYPOST_LEFT` and its like.
#define WAYPOST_MEMBER_GONE 2

// `member` is the host now; possibly this player.
#define WAYPOST_HOST_CHANGED 3

// Metadata, member limit or flags of the session have changed.
#define WAYPOST_SESSION_CHANGED 4

// The data of `member` have changed.
#define WAYPOST_MEMBER_CHANGED 5

// The match has all its players.
#define WAYPOST_FORMED 6

// Data to `member` take another path from now on: `detail`, `WAYPOST_PATH_DIRECT` and its like.
#define WAYPOST_PATH_CHANGED 7

// How the NAT maps has been found out.
#define WAYPOST_NAT_MAPPED 8

// The own address as the server sees it has changed, and the seat moved along.
#define WAYPOST_ADDRESS_CHANGED 9

// The server does not answer; direct paths go on.
#define WAYPOST_SERVER_SILENT 10

// It answers again.
#define WAYPOST_SERVER_BACK 11

// The server had forgotten the seat and gave it back.
#define WAYPOST_RESUMED 12

// The session had to be made anew: share the new code.
#define WAYPOST_CODE_CHANGED 13

// The server does not know the seat any more. The session is over for this player.
#define WAYPOST_SEAT_LOST 14

// The host or the server has taken the seat away; `detail` is why. The session is over for this player.
#define WAYPOST_REMOVED 15

// The server has been left, and the session goes on over direct paths.
#define WAYPOST_WITHOUT_SERVER 16

// `member` has left the server and is reached directly only, as long as that path holds.
#define WAYPOST_MEMBER_WITHOUT_SERVER 17

// `member` and this player have been told when and where to connect a stream.
#define WAYPOST_STREAM_INTRODUCED 18

// A message of `member`: its number is `message`, its `length` bytes are in the buffer, `detail` is 1 if it was reliable.
#define WAYPOST_MESSAGE 32

// The reliable message `message` has arrived at `member`.
#define WAYPOST_ACKNOWLEDGED 33

// The reliable message `message` was not acknowledged by `member` in its lifetime.
#define WAYPOST_EXPIRED 34

// Nothing has come from `member` for the dead time.
#define WAYPOST_PEER_SILENT 35

// Something has come from a silent `member`.
#define WAYPOST_PEER_BACK 36

// The program of `member` has begun anew and knows nothing of what was said before.
#define WAYPOST_PEER_RESTARTED 37

// Why: it left.
#define WAYPOST_LEFT 1

// Why: the host removed it.
#define WAYPOST_KICKED 2

// Why: it was silent for too long.
#define WAYPOST_LOST 3

// Why: the session was closed.
#define WAYPOST_CLOSED 4

// Why: the session's lifetime is over.
#define WAYPOST_LIFETIME_OVER 5

// Through the server.
#define WAYPOST_PATH_RELAYED 0

// Through the server, unless the policy forbids it, while a direct path is tried.
#define WAYPOST_PATH_PUNCHING 1

// Straight to the member.
#define WAYPOST_PATH_DIRECT 2

// None.
#define WAYPOST_PATH_NONE 3

// Sent once; delivered at most once, in any order.
#define WAYPOST_UNRELIABLE 0

// Sent once; what is overtaken is not delivered.
#define WAYPOST_SEQUENCED 1

// Sent until it has arrived; delivered once, in any order.
#define WAYPOST_RELIABLE 2

// Sent until it has arrived; delivered once, in the order of sending.
#define WAYPOST_ORDERED 3

// Instead of a member: all of them.
#define WAYPOST_EVERYBODY UINT32_MAX

// It is done.
#define WAYPOST_OK 0

// Nothing is there now; wait for the descriptor.
#define WAYPOST_EMPTY -1

// The caller's buffer is too small. The length it needs was written, and nothing was taken.
#define WAYPOST_TOO_SMALL -2

// An argument is null, no UTF-8, out of its range, or too long.
#define WAYPOST_INVALID -3

// The operating system refused something.
#define WAYPOST_SYSTEM -4

// The server does not answer.
#define WAYPOST_SILENT -5

// The server refused; `waypost_error_code` has its error code.
#define WAYPOST_REJECTED -6

// There is no path to that member under the path policy now.
#define WAYPOST_NO_PATH -7

// That member is not in the session any more.
#define WAYPOST_MEMBER_LEFT -8

// The seat is gone.
#define WAYPOST_ENDED -9

// The member does not keep up with the messages.
#define WAYPOST_FULL -10

// The session was made without messages.
#define WAYPOST_NO_MESSAGES -11

// The time was over first.
#define WAYPOST_TIMED_OUT -12

// The library has failed; please report it with the text.
#define WAYPOST_PANIC -13

// Calling an address that lets anybody in.
#define WAYPOST_STRATEGY_DIRECT 1

// Being called at such an address of one's own.
#define WAYPOST_STRATEGY_REVERSE 2

// UDP from both sides through two NATs.
#define WAYPOST_STRATEGY_UDP_PUNCH 4

// TCP from both sides, for `waypost_connect_stream` only.
#define WAYPOST_STRATEGY_TCP_PUNCH 8

// Through the server.
#define WAYPOST_STRATEGY_RELAY 16

// Through a TURN server on which one of the two has an address.
#define WAYPOST_STRATEGY_TURN 32

// A TURN server is reached over UDP.
#define WAYPOST_TURN_UDP 0

// A TURN server is reached over TCP.
#define WAYPOST_TURN_TCP 1

// A TURN server is reached over TLS. `WAYPOST_INVALID` if the library was built without its feature `tls`.
#define WAYPOST_TURN_TLS 2

// Who plays, and what session it wants. Used for hosting, joining and lists; each takes from it what it needs.
typedef struct WaypostConfig WaypostConfig;

// A list of sessions, as it was when it was read.
typedef struct WaypostList WaypostList;

// A seat in a session.
typedef struct WaypostSession WaypostSession;

// Which sessions of a list are wanted: those that pass everything that is set.
typedef struct {
  // Only sessions whose name begins so; null for all.
  const char *name_prefix;
  // Only sessions with a free seat.
  bool has_room;
  // Only sessions that are not locked.
  bool unlocked;
  // Only sessions that need no password.
  bool no_password;
} WaypostListFilter;

// A session in a list.
typedef struct {
  // Its join code.
  char code[16];
  // Its unique name, empty if it has none.
  char name[65];
  // Its seats.
  uint8_t max_members;
  // Seats taken.
  uint8_t members;
  // Whether joining needs a password.
  bool has_password;
  // Whether nobody may join now.
  bool is_locked;
  // Bytes of its metadata.
  uintptr_t metadata_length;
  // What its host wants known.
  uint8_t metadata[512];
} WaypostListed;

// Another member.
typedef struct {
  // Who.
  uint32_t id;
  // The way that data to it take now, `WAYPOST_PATH_DIRECT` and its like.
  int path;
  // Whether it is the host.
  bool is_host;
  // Whether it is reached through the relay only, by its own wish.
  bool is_relay_only;
  // Bytes of its data.
  uintptr_t data_length;
  // Its own data, a name for instance.
  uint8_t data[64];
} WaypostMember;

// Something that happened.
typedef struct {
  // `WAYPOST_MEMBER_JOINED` and its like.
  int kind;
  // As the kind says.
  int detail;
  // The member that it is about, 0 if none.
  uint32_t member;
  // The message that it is about, 0 if none.
  uint32_t message;
  // Bytes of the message's content, 0 without one.
  uintptr_t length;
} WaypostEvent;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The interface that the library has: compare it with `WAYPOST_ABI`.
uint32_t waypost_abi(void);

// A configuration for players of `application`, 1 to 32 bytes that name the game; everything else as usual. Null if
// `application` is null or no UTF-8. To be freed with `waypost_config_free`.
//
// # Safety
// `application` is null or a text that ends with a null byte.
WaypostConfig *waypost_config_new(const char *application);

// Frees a configuration. Sessions made from it stay.
//
// # Safety
// `config` is null or came from `waypost_config_new` and was not freed.
void waypost_config_free(WaypostConfig *config);

// A unique name for the session to host, 1 to 64 bytes, to join by; null for none.
//
// # Safety
// `config` came from `waypost_config_new`; `name` is null or a text.
int waypost_config_set_name(WaypostConfig *config, const char *name);

// What joining takes: for the session to host, or that of the session to join. Empty for nothing.
//
// # Safety
// `config` came from `waypost_config_new`; `password` is a text.
int waypost_config_set_password(WaypostConfig *config, const char *password);

// Seats of the session to host, 2 to 255, the host's included; 8 unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_max_members(WaypostConfig *config, uint8_t max_members);

// Up to 512 bytes that lists and members show of the session to host.
//
// # Safety
// `config` came from `waypost_config_new`; `data` points to `length` bytes.
int waypost_config_set_metadata(WaypostConfig *config, const uint8_t *data, uintptr_t length);

// Whether lists show the session to host.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_listed(WaypostConfig *config, bool listed);

// Up to 64 bytes that the other members see of this player, a name for instance.
//
// # Safety
// `config` came from `waypost_config_new`; `data` points to `length` bytes.
int waypost_config_set_player_data(WaypostConfig *config, const uint8_t *data, uintptr_t length);

// How data may travel: `WAYPOST_DIRECT_FIRST` and its like.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_policy(WaypostConfig *config, int policy);

// Whether the session has messages beside datagrams, which all its members must agree on: with `dead_after_ms` over 0 it does,
// and a member of which nothing has come for so long (500 to 600,000 ms) is told as silent. 0, as at first: no messages.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_messages(WaypostConfig *config,
                                uint32_t dead_after_ms);

// For servers that serve only whom their operator knows: a credential made by the game's backend.
//
// # Safety
// `config` came from `waypost_config_new`; `username` and `password` are texts.
int waypost_config_set_credential(WaypostConfig *config, const char *username, const char *password);

// How long an operation waits for the server, milliseconds; 15,000 unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_patience(WaypostConfig *config, uint32_t patience_ms);

// Reads the listed sessions of a configuration's application that pass `filter`, or all if that is null. Waits for the server. The
// list is to be freed with `waypost_list_free`.
//
// # Safety
// `server` is a text, `config` came from `waypost_config_new`, `filter` is null or points to a filter whose `name_prefix` is null or a
// text, `made` points to a place for a pointer.
int waypost_list_read(const char *server,
                      const WaypostConfig *config,
                      const WaypostListFilter *filter,
                      WaypostList **made);

// How many sessions a list has.
//
// # Safety
// `list` is null or came from `waypost_list_read` and was not freed.
uintptr_t waypost_list_count(const WaypostList *list);

// Writes the session with this index into `session`.
//
// # Safety
// `list` came from `waypost_list_read` and was not freed; `session` points to writable memory for it.
int waypost_list_get(const WaypostList *list, uintptr_t index, WaypostListed *session);

// Frees a list.
//
// # Safety
// `list` is null or came from `waypost_list_read` and was not freed.
void waypost_list_free(WaypostList *list);

// Makes a session on `server`, "host:port", and takes its first seat. Waits for the server. The session is to be freed with
// `waypost_session_free`.
//
// # Safety
// `server` is a text, `config` came from `waypost_config_new`, `made` points to a place for a pointer.
int waypost_host(const char *server,
                 const WaypostConfig *config,
                 WaypostSession **made);

// Takes a seat in the session with this code or this name. Waits for the server. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `code_or_name` is a text.
int waypost_join(const char *server, const char *code_or_name, const WaypostConfig *config, WaypostSession **made);

// Takes a seat in a match with others who want `players` (2 to 255) with the same `key` of 1 to 64 bytes. The others come with
// `WAYPOST_FORMED`. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `key` points to `key_length` bytes.
int waypost_find_match(const char *server,
                       const uint8_t *key,
                       uintptr_t key_length,
                       uint8_t players,
                       const WaypostConfig *config,
                       WaypostSession **made);

// Comes back to the seat of a ticket from `waypost_ticket`. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `ticket` points to `ticket_length` bytes.
int waypost_resume(const char *server,
                   const uint8_t *ticket,
                   uintptr_t ticket_length,
                   const WaypostConfig *config,
                   WaypostSession **made);

// Leaves the session without waiting, if it has not been left, and frees it.
//
// # Safety
// `session` is null, or came from this library, was not freed, and no other thread uses it.
void waypost_session_free(WaypostSession *session);

// A file descriptor that is readable while something waits for the caller, and always once the seat is gone. Only for waiting
// (`poll`, `select`, `epoll`): not to be read from, nor closed.
//
// # Safety
// `session` came from this library and was not freed; `fd` points to writable memory.
int waypost_fd(const WaypostSession *session,
               int *fd);

// Writes the join code; 12 bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `code` points to `capacity` bytes.
int waypost_code(const WaypostSession *session, char *code, uintptr_t capacity);

// Writes the ticket that `waypost_resume` takes. `length` says how long it is. As secret as a password.
//
// # Safety
// `session` came from this library and was not freed; `ticket` points to `capacity` bytes, `length` to writable memory.
int waypost_ticket(const WaypostSession *session, uint8_t *ticket, uintptr_t capacity, uintptr_t *length);

// This player's own number.
//
// # Safety
// `session` came from this library and was not freed; `id` points to writable memory.
int waypost_own_id(const WaypostSession *session, uint32_t *id);

// Whether this player is the host.
//
// # Safety
// `session` is null or came from this library and was not freed.
bool waypost_is_host(const WaypostSession *session);

// Writes the other members, in the order of their seats, into the array `members` of `capacity`. `count` says how many there
// are; if that is more than fits, `WAYPOST_TOO_SMALL`.
//
// # Safety
// `session` came from this library and was not freed; `members` points to room for `capacity` of them, `count` to writable
// memory.
int waypost_members(const WaypostSession *session,
                    WaypostMember *members,
                    uintptr_t capacity,
                    uintptr_t *count);

// Sends a datagram of at most 1,195 bytes to a member: it may be lost, doubled or overtaken.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes.
int waypost_send(const WaypostSession *session, uint32_t member, const uint8_t *data, uintptr_t length);

// Takes a datagram, if one is there, else `WAYPOST_EMPTY`. What does not fit into `capacity` is cut off; `length` is that of the
// datagram, 1,196 at most.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `capacity` bytes, `member` and `length` to writable
// memory.
int waypost_receive(const WaypostSession *session,
                    uint32_t *member,
                    uint8_t *data,
                    uintptr_t capacity,
                    uintptr_t *length);

// Sends a message of at most 65,536 bytes to a member, or to `WAYPOST_EVERYBODY`. `service` is `WAYPOST_RELIABLE` or its like;
// after `lifetime_ms` a reliable one that was not acknowledged is given up, 0 for never. `message`, unless null, gets the
// number that events name it by.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes, `message` is null or points to writable
// memory.
int waypost_send_message(const WaypostSession *session,
                         uint32_t member,
                         const uint8_t *data,
                         uintptr_t length,
                         int service,
                         uint32_t lifetime_ms,
                         uint32_t *message);

// Takes the next thing that happened, if there is one, else `WAYPOST_EMPTY`. The content of a message is written into `data`; if
// it does not fit, `WAYPOST_TOO_SMALL`, the event tells its length, and the next call tells the same event.
// Once the seat is gone and all is told, `WAYPOST_ENDED`.
//
// # Safety
// `session` came from this library and was not freed; `event` points to writable memory for it, `data` to `capacity` bytes.
int waypost_next_event(const WaypostSession *session,
                       WaypostEvent *event,
                       uint8_t *data,
                       uintptr_t capacity);

// The smoothed round trip to a member, milliseconds. `WAYPOST_EMPTY` while it is not known, as without messages.
//
// # Safety
// `session` came from this library and was not freed; `milliseconds` points to writable memory.
int waypost_round_trip(const WaypostSession *session, uint32_t member, uint32_t *milliseconds);

// Removes a member for the session's life. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_kick(const WaypostSession *session, uint32_t member);

// Makes another member the host. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_transfer(const WaypostSession *session, uint32_t member);

// Locks or opens the session. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_set_locked(const WaypostSession *session, bool locked);

// Changes the up to 512 bytes that lists and members show of the session. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes.
int waypost_set_metadata(const WaypostSession *session, const uint8_t *data, uintptr_t length);

// Leaves the server and goes on with the members to whom there is a direct path, each as long as its path holds. Waits until it
// is done, about a round trip. `WAYPOST_INVALID` if there is a direct path to nobody.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_leave_server(const WaypostSession *session);

// Whether the seat is there and the server answers, or the session goes on without it.
//
// # Safety
// `session` is null or came from this library and was not freed.
bool waypost_is_connected(const WaypostSession *session);

// Writes the session's unique name, empty if it has none; 65 bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `name` points to `capacity` bytes.
int waypost_name(const WaypostSession *session, char *name, uintptr_t capacity);

// Ends the session for everybody. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_close(const WaypostSession *session);

// Leaves the session and waits until the server has taken notice. Reliable messages that are not acknowledged are lost. The
// session is still to be freed.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_leave(const WaypostSession *session);

// Writes what the last failure of this thread was and what to do about it, for people to read. `capacity` counts the null
// byte; what does not fit is cut off. Returns the text's length without the null byte.
//
// # Safety
// `text` points to `capacity` writable bytes, or `capacity` is 0.
uintptr_t waypost_error_text(char *text,
                             uintptr_t capacity);

// The server's error code that goes with the last failure of this thread, 0 if that was not `WAYPOST_REJECTED`. Codes are in
// docs/protocol.md, section 8.
int waypost_error_code(void);

// Which ways are tried, in parallel: a sum of `WAYPOST_STRATEGY_DIRECT` and its like; all unless set. Without the relay the policy
// is `WAYPOST_DIRECT_ONLY`, with the relay alone `WAYPOST_RELAY_ONLY`.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_strategies(WaypostConfig *config,
                                  uint32_t strategies);

// The port of this machine to use, 0 for any; the port of the public address that the router forwards to it, 0 for none; and whether
// the router is asked for one, which takes up to some seconds. At first any, none, and not.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_ports(WaypostConfig *config,
                             uint16_t local_port,
                             uint16_t reachable_port,
                             bool maps_port);

// Whether the ports of a member whose NAT gives them out at random are guessed, with at most 1,024 small packets; not unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_guesses_ports(WaypostConfig *config,
                                     bool guesses);

// A TURN server that everything of the session goes through; `address`, "203.0.113.9:3478", null for none, as at first. `transport` is
// `WAYPOST_TURN_UDP` or its like. Only TLS needs `name`, which the server's certificate has to be made out to, and `roots_pem`, the
// certificates in PEM that are trusted and no others.
//
// # Safety
// `config` came from `waypost_config_new`; `address` and `name` are null or texts, `username` and `password` texts unless `address` is
// null; `roots_pem` points to `roots_length` bytes.
int waypost_config_set_turn(WaypostConfig *config,
                            const char *address,
                            int transport,
                            const char *username,
                            const char *password,
                            const char *name,
                            const uint8_t *roots_pem,
                            uintptr_t roots_length);

// A TURN server on which the player gets one more address that it can be reached at, `WAYPOST_STRATEGY_TURN`, tried beside the other
// ways. The arguments are those of `waypost_config_set_turn`.
//
// # Safety
// As `waypost_config_set_turn`.
int waypost_config_set_turn_candidate(WaypostConfig *config,
                                      const char *address,
                                      int transport,
                                      const char *username,
                                      const char *password,
                                      const char *name,
                                      const uint8_t *roots_pem,
                                      uintptr_t roots_length);

// Connects a TCP stream to a member, straight through both NATs, within `timeout_ms`. Both have to call this; who calls first waits for
// the other, so it is for a thread of its own. `descriptor` gets a connected, blocking socket that is the caller's to close, `strategy`,
// unless null, the way that led to it: `WAYPOST_STRATEGY_TCP_PUNCH` or its like. `WAYPOST_NO_PATH` if none came about.
//
// # Safety
// `session` came from this library and was not freed; `descriptor` points to writable memory, `strategy` too or is null.
int waypost_connect_stream(const WaypostSession *session,
                           uint32_t member,
                           uint32_t timeout_ms,
                           int *descriptor,
                           uint32_t *strategy);

// Writes what became of each way to a member, for people to read: a line for each, such as "udp-punch: connected after 48 ms". 1,024
// bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `report` points to `capacity` bytes.
int waypost_report(const WaypostSession *session,
                   uint32_t member,
                   char *report,
                   uintptr_t capacity);

// Finds out how the NAT in front of this machine behaves and what to expect of it, and writes it down for people to read; 1,024 bytes
// are enough. Takes up to some seconds. For all of it the server, "host:port", needs a second address.
//
// # Safety
// `server` is a text; `report` points to `capacity` bytes.
int waypost_nat_report(const char *server,
                       char *report,
                       uintptr_t capacity);

// Writes what the last failure of this thread was and what to do about it, for people to read. `capacity` counts the null
// byte; what does not fit is cut off. Returns the text's length without the null byte.
//
// # Safety
// `text` points to `capacity` writable bytes, or `capacity` is 0.
uintptr_t waypost_error_text(char *text,
                             uintptr_t capacity);

// The server's error code that goes with the last failure of this thread, 0 if that was not `WAYPOST_REJECTED`. Codes are in
// docs/protocol.md, section 8.
int waypost_error_code(void);

// A configuration for players of `application`, 1 to 32 bytes that name the game; everything else as usual. Null if
// `application` is null or no UTF-8. To be freed with `waypost_config_free`.
//
// # Safety
// `application` is null or a text that ends with a null byte.
WaypostConfig *waypost_config_new(const char *application);

// Frees a configuration. Sessions made from it stay.
//
// # Safety
// `config` is null or came from `waypost_config_new` and was not freed.
void waypost_config_free(WaypostConfig *config);

// A unique name for the session to host, 1 to 64 bytes, to join by; null for none.
//
// # Safety
// `config` came from `waypost_config_new`; `name` is null or a text.
int waypost_config_set_name(WaypostConfig *config, const char *name);

// What joining takes: for the session to host, or that of the session to join. Empty for nothing.
//
// # Safety
// `config` came from `waypost_config_new`; `password` is a text.
int waypost_config_set_password(WaypostConfig *config, const char *password);

// Seats of the session to host, 2 to 255, the host's included; 8 unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_max_members(WaypostConfig *config, uint8_t max_members);

// Up to 512 bytes that lists and members show of the session to host.
//
// # Safety
// `config` came from `waypost_config_new`; `data` points to `length` bytes.
int waypost_config_set_metadata(WaypostConfig *config, const uint8_t *data, uintptr_t length);

// Whether lists show the session to host.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_listed(WaypostConfig *config, bool listed);

// Up to 64 bytes that the other members see of this player, a name for instance.
//
// # Safety
// `config` came from `waypost_config_new`; `data` points to `length` bytes.
int waypost_config_set_player_data(WaypostConfig *config, const uint8_t *data, uintptr_t length);

// How data may travel: `WAYPOST_DIRECT_FIRST` and its like.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_policy(WaypostConfig *config, int policy);

// Whether the session has messages beside datagrams, which all its members must agree on: with `dead_after_ms` over 0 it does,
// and a member of which nothing has come for so long (500 to 600,000 ms) is told as silent. 0, as at first: no messages.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_messages(WaypostConfig *config,
                                uint32_t dead_after_ms);

// For servers that serve only whom their operator knows: a credential made by the game's backend.
//
// # Safety
// `config` came from `waypost_config_new`; `username` and `password` are texts.
int waypost_config_set_credential(WaypostConfig *config, const char *username, const char *password);

// How long an operation waits for the server, milliseconds; 15,000 unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_patience(WaypostConfig *config, uint32_t patience_ms);

// Reads the listed sessions of a configuration's application that pass `filter`, or all if that is null. Waits for the server. The
// list is to be freed with `waypost_list_free`.
//
// # Safety
// `server` is a text, `config` came from `waypost_config_new`, `filter` is null or points to a filter whose `name_prefix` is null or a
// text, `made` points to a place for a pointer.
int waypost_list_read(const char *server,
                      const WaypostConfig *config,
                      const WaypostListFilter *filter,
                      WaypostList **made);

// How many sessions a list has.
//
// # Safety
// `list` is null or came from `waypost_list_read` and was not freed.
uintptr_t waypost_list_count(const WaypostList *list);

// Writes the session with this index into `session`.
//
// # Safety
// `list` came from `waypost_list_read` and was not freed; `session` points to writable memory for it.
int waypost_list_get(const WaypostList *list, uintptr_t index, WaypostListed *session);

// Frees a list.
//
// # Safety
// `list` is null or came from `waypost_list_read` and was not freed.
void waypost_list_free(WaypostList *list);

// Makes a session on `server`, "host:port", and takes its first seat. Waits for the server. The session is to be freed with
// `waypost_session_free`.
//
// # Safety
// `server` is a text, `config` came from `waypost_config_new`, `made` points to a place for a pointer.
int waypost_host(const char *server,
                 const WaypostConfig *config,
                 WaypostSession **made);

// Takes a seat in the session with this code or this name. Waits for the server. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `code_or_name` is a text.
int waypost_join(const char *server, const char *code_or_name, const WaypostConfig *config, WaypostSession **made);

// Takes a seat in a match with others who want `players` (2 to 255) with the same `key` of 1 to 64 bytes. The others come with
// `WAYPOST_FORMED`. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `key` points to `key_length` bytes.
int waypost_find_match(const char *server,
                       const uint8_t *key,
                       uintptr_t key_length,
                       uint8_t players,
                       const WaypostConfig *config,
                       WaypostSession **made);

// Comes back to the seat of a ticket from `waypost_ticket`. As `waypost_host` otherwise.
//
// # Safety
// As `waypost_host`; `ticket` points to `ticket_length` bytes.
int waypost_resume(const char *server,
                   const uint8_t *ticket,
                   uintptr_t ticket_length,
                   const WaypostConfig *config,
                   WaypostSession **made);

// Leaves the session without waiting, if it has not been left, and frees it.
//
// # Safety
// `session` is null, or came from this library, was not freed, and no other thread uses it.
void waypost_session_free(WaypostSession *session);

// A file descriptor that is readable while something waits for the caller, and always once the seat is gone. Only for waiting
// (`poll`, `select`, `epoll`): not to be read from, nor closed.
//
// # Safety
// `session` came from this library and was not freed; `fd` points to writable memory.
int waypost_fd(const WaypostSession *session,
               int *fd);

// Writes the join code; 12 bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `code` points to `capacity` bytes.
int waypost_code(const WaypostSession *session, char *code, uintptr_t capacity);

// Writes the ticket that `waypost_resume` takes. `length` says how long it is. As secret as a password.
//
// # Safety
// `session` came from this library and was not freed; `ticket` points to `capacity` bytes, `length` to writable memory.
int waypost_ticket(const WaypostSession *session, uint8_t *ticket, uintptr_t capacity, uintptr_t *length);

// This player's own number.
//
// # Safety
// `session` came from this library and was not freed; `id` points to writable memory.
int waypost_own_id(const WaypostSession *session, uint32_t *id);

// Whether this player is the host.
//
// # Safety
// `session` is null or came from this library and was not freed.
bool waypost_is_host(const WaypostSession *session);

// Writes the other members, in the order of their seats, into the array `members` of `capacity`. `count` says how many there
// are; if that is more than fits, `WAYPOST_TOO_SMALL`.
//
// # Safety
// `session` came from this library and was not freed; `members` points to room for `capacity` of them, `count` to writable
// memory.
int waypost_members(const WaypostSession *session,
                    WaypostMember *members,
                    uintptr_t capacity,
                    uintptr_t *count);

// Sends a datagram of at most 1,195 bytes to a member: it may be lost, doubled or overtaken.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes.
int waypost_send(const WaypostSession *session, uint32_t member, const uint8_t *data, uintptr_t length);

// Takes a datagram, if one is there, else `WAYPOST_EMPTY`. What does not fit into `capacity` is cut off; `length` is that of the
// datagram, 1,196 at most.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `capacity` bytes, `member` and `length` to writable
// memory.
int waypost_receive(const WaypostSession *session,
                    uint32_t *member,
                    uint8_t *data,
                    uintptr_t capacity,
                    uintptr_t *length);

// Sends a message of at most 65,536 bytes to a member, or to `WAYPOST_EVERYBODY`. `service` is `WAYPOST_RELIABLE` or its like;
// after `lifetime_ms` a reliable one that was not acknowledged is given up, 0 for never. `message`, unless null, gets the
// number that events name it by.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes, `message` is null or points to writable
// memory.
int waypost_send_message(const WaypostSession *session,
                         uint32_t member,
                         const uint8_t *data,
                         uintptr_t length,
                         int service,
                         uint32_t lifetime_ms,
                         uint32_t *message);

// Takes the next thing that happened, if there is one, else `WAYPOST_EMPTY`. The content of a message is written into `data`; if
// it does not fit, `WAYPOST_TOO_SMALL`, the event tells its length, and the next call tells the same event.
// Once the seat is gone and all is told, `WAYPOST_ENDED`.
//
// # Safety
// `session` came from this library and was not freed; `event` points to writable memory for it, `data` to `capacity` bytes.
int waypost_next_event(const WaypostSession *session,
                       WaypostEvent *event,
                       uint8_t *data,
                       uintptr_t capacity);

// The smoothed round trip to a member, milliseconds. `WAYPOST_EMPTY` while it is not known, as without messages.
//
// # Safety
// `session` came from this library and was not freed; `milliseconds` points to writable memory.
int waypost_round_trip(const WaypostSession *session, uint32_t member, uint32_t *milliseconds);

// Removes a member for the session's life. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_kick(const WaypostSession *session, uint32_t member);

// Makes another member the host. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_transfer(const WaypostSession *session, uint32_t member);

// Locks or opens the session. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_set_locked(const WaypostSession *session, bool locked);

// Changes the up to 512 bytes that lists and members show of the session. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed; `data` points to `length` bytes.
int waypost_set_metadata(const WaypostSession *session, const uint8_t *data, uintptr_t length);

// Leaves the server and goes on with the members to whom there is a direct path, each as long as its path holds. Waits until it
// is done, about a round trip. `WAYPOST_INVALID` if there is a direct path to nobody.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_leave_server(const WaypostSession *session);

// Whether the seat is there and the server answers, or the session goes on without it.
//
// # Safety
// `session` is null or came from this library and was not freed.
bool waypost_is_connected(const WaypostSession *session);

// Writes the session's unique name, empty if it has none; 65 bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `name` points to `capacity` bytes.
int waypost_name(const WaypostSession *session, char *name, uintptr_t capacity);

// Ends the session for everybody. Only the host may. Waits for the server.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_close(const WaypostSession *session);

// Leaves the session and waits until the server has taken notice. Reliable messages that are not acknowledged are lost. The
// session is still to be freed.
//
// # Safety
// `session` came from this library and was not freed.
int waypost_leave(const WaypostSession *session);

// Which ways are tried, in parallel: a sum of `WAYPOST_STRATEGY_DIRECT` and its like; all unless set. Without the relay the policy
// is `WAYPOST_DIRECT_ONLY`, with the relay alone `WAYPOST_RELAY_ONLY`.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_strategies(WaypostConfig *config,
                                  uint32_t strategies);

// The port of this machine to use, 0 for any; the port of the public address that the router forwards to it, 0 for none; and whether
// the router is asked for one, which takes up to some seconds. At first any, none, and not.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_ports(WaypostConfig *config,
                             uint16_t local_port,
                             uint16_t reachable_port,
                             bool maps_port);

// Whether the ports of a member whose NAT gives them out at random are guessed, with at most 1,024 small packets; not unless set.
//
// # Safety
// `config` came from `waypost_config_new`.
int waypost_config_set_guesses_ports(WaypostConfig *config,
                                     bool guesses);

// A TURN server that everything of the session goes through; `address`, "203.0.113.9:3478", null for none, as at first. `transport` is
// `WAYPOST_TURN_UDP` or its like. Only TLS needs `name`, which the server's certificate has to be made out to, and `roots_pem`, the
// certificates in PEM that are trusted and no others.
//
// # Safety
// `config` came from `waypost_config_new`; `address` and `name` are null or texts, `username` and `password` texts unless `address` is
// null; `roots_pem` points to `roots_length` bytes.
int waypost_config_set_turn(WaypostConfig *config,
                            const char *address,
                            int transport,
                            const char *username,
                            const char *password,
                            const char *name,
                            const uint8_t *roots_pem,
                            uintptr_t roots_length);

// A TURN server on which the player gets one more address that it can be reached at, `WAYPOST_STRATEGY_TURN`, tried beside the other
// ways. The arguments are those of `waypost_config_set_turn`.
//
// # Safety
// As `waypost_config_set_turn`.
int waypost_config_set_turn_candidate(WaypostConfig *config,
                                      const char *address,
                                      int transport,
                                      const char *username,
                                      const char *password,
                                      const char *name,
                                      const uint8_t *roots_pem,
                                      uintptr_t roots_length);

// Connects a TCP stream to a member, straight through both NATs, within `timeout_ms`. Both have to call this; who calls first waits for
// the other, so it is for a thread of its own. `descriptor` gets a connected, blocking socket that is the caller's to close, `strategy`,
// unless null, the way that led to it: `WAYPOST_STRATEGY_TCP_PUNCH` or its like. `WAYPOST_NO_PATH` if none came about.
//
// # Safety
// `session` came from this library and was not freed; `descriptor` points to writable memory, `strategy` too or is null.
int waypost_connect_stream(const WaypostSession *session,
                           uint32_t member,
                           uint32_t timeout_ms,
                           int *descriptor,
                           uint32_t *strategy);

// Writes what became of each way to a member, for people to read: a line for each, such as "udp-punch: connected after 48 ms". 1,024
// bytes are enough.
//
// # Safety
// `session` came from this library and was not freed; `report` points to `capacity` bytes.
int waypost_report(const WaypostSession *session,
                   uint32_t member,
                   char *report,
                   uintptr_t capacity);

// Finds out how the NAT in front of this machine behaves and what to expect of it, and writes it down for people to read; 1,024 bytes
// are enough. Takes up to some seconds. For all of it the server, "host:port", needs a second address.
//
// # Safety
// `server` is a text; `report` points to `capacity` bytes.
int waypost_nat_report(const char *server,
                       char *report,
                       uintptr_t capacity);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WAYPOST_H */
