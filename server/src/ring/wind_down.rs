//! The end of a ring: everything that the kernel has is taken back before the memory goes.

use std::io;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::token::Token;
use super::{Ring, State};

/// How long a drop waits for the kernel to give everything back.
const DROP_LIMIT: Duration = Duration::from_secs(3);

impl Ring {
    /// Ends every request of the kernel's; false if it did not within the limit.
    fn wind_down(&mut self) -> io::Result<bool> {
        let give_up = Instant::now() + DROP_LIMIT;
        let everything = opcode::AsyncCancel2::new(types::CancelBuilder::any())
            .build()
            .user_data(Token::Cancel.pack());
        // SAFETY: a cancellation refers to no memory.
        unsafe { self.queue.push(&everything)? };
        let armed: Vec<_> = self.state.sockets.ids().collect();
        let is_armed =
            |state: &mut State, id| state.sockets.get_any_mut(id).is_some_and(|e| e.extra.armed);
        while Instant::now() < give_up {
            self.queue.enter_and_wait(0, 0, None)?;
            self.reap()?;
            let streams_busy = self.state.streams.as_ref().is_some_and(|s| s.is_busy());
            let busy = self.state.doorbell_armed
                || streams_busy
                || armed.iter().any(|&id| is_armed(&mut self.state, id));
            if !busy {
                self.queue.submitter().unregister_files()?;
                return Ok(true);
            }
            self.queue
                .enter_and_wait(1, 0, Some(Duration::from_millis(10)))?;
            self.reap()?;
        }
        Ok(false)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let clean = self.wind_down().unwrap_or(false);
        // Memory that the kernel still writes to must not be freed under it.
        assert!(
            clean || std::thread::panicking(),
            "the kernel did not give the ring back"
        );
    }
}
