/* Two players talk, in C that is C++ as well.
 *
 *   talk 127.0.0.1:3478 host               prints a code such as BAD-KIF-ROM and answers who joins
 *   talk 127.0.0.1:3478 join BAD-KIF-ROM   says hello, waits for the answer, and leaves
 *
 *   cargo build --release -p waypost-c
 *   cc client/c/examples/talk.c -Iclient/c/include target/release/libwaypost.a -lpthread -ldl -lm -o talk
 */
#define _POSIX_C_SOURCE 200809L

#include <poll.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "waypost.h"

static unsigned char buffer[65536];

static int fail(const char *what) {
    char text[256];
    waypost_error_text(text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    return 1;
}

/* Says something to everybody. */
static int say(const WaypostSession *session, const char *words) {
    return waypost_send_message(session, WAYPOST_EVERYBODY, (const uint8_t *)words, strlen(words), WAYPOST_ORDERED, 0, NULL);
}

/* Handles all that has happened. Returns 1 when the talk is over, -1 when it failed. */
static int handle_events(const WaypostSession *session, bool is_host) {
    WaypostEvent event;
    size_t length;
    uint32_t member;
    int status;
    while ((status = waypost_next_event(session, &event, buffer, sizeof buffer)) == WAYPOST_OK) {
        switch (event.kind) {
        case WAYPOST_MEMBER_JOINED:
            printf("member %08x is here\n", (unsigned)event.member);
            if (!is_host && say(session, "hello from C") != WAYPOST_OK) return -1;
            break;
        case WAYPOST_MESSAGE:
            printf("member %08x says: %.*s\n", (unsigned)event.member, (int)event.length, (const char *)buffer);
            if (!is_host) return 1;
            if (say(session, "hello to you") != WAYPOST_OK) return -1;
            /* And a datagram, which may get lost. */
            if (waypost_send(session, event.member, (const uint8_t *)"!", 1) != WAYPOST_OK) return -1;
            break;
        case WAYPOST_MEMBER_GONE:
            if (is_host) return 1;
            break;
        default:
            break;
        }
    }
    while (waypost_receive(session, &member, buffer, sizeof buffer, &length) == WAYPOST_OK) {
        printf("member %08x sent a datagram of %u bytes\n", (unsigned)member, (unsigned)length);
    }
    return status == WAYPOST_EMPTY ? 0 : -1;
}

int main(int argc, char **argv) {
    WaypostConfig *config;
    WaypostSession *session = NULL;
    struct pollfd waiting;
    char code[16];
    int status, over = 0;
    bool is_host = argc == 3 && strcmp(argv[2], "host") == 0;
    if (!is_host && !(argc == 4 && strcmp(argv[2], "join") == 0)) {
        fprintf(stderr, "usage: talk SERVER host | talk SERVER join CODE\n");
        return 2;
    }
    if (waypost_abi() != WAYPOST_ABI) {
        fprintf(stderr, "the library is of another version than waypost.h\n");
        return 1;
    }
    config = waypost_config_new("waypost-talk");
    waypost_config_set_messages(config, 5000);
    status = is_host ? waypost_host(argv[1], config, &session) : waypost_join(argv[1], argv[3], config, &session);
    waypost_config_free(config);
    if (status != WAYPOST_OK) return fail("no seat");
    if (waypost_code(session, code, sizeof code) != WAYPOST_OK) return fail("no code");
    printf("%s\n", code);
    fflush(stdout);

    waiting.events = POLLIN;
    if (waypost_fd(session, &waiting.fd) != WAYPOST_OK) return fail("no descriptor");
    while (over == 0) {
        if (poll(&waiting, 1, 30000) <= 0) {
            fprintf(stderr, "nobody talks\n");
            return 1;
        }
        over = handle_events(session, is_host);
    }
    if (over < 0) status = fail("the talk broke off");
    if (over > 0 && waypost_leave(session) != WAYPOST_OK) status = fail("not left");
    waypost_session_free(session);
    return status;
}
