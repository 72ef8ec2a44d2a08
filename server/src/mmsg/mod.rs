//! Packet input and output by epoll, recvmmsg and sendmmsg, for hosts that forbid io_uring.
#![allow(unsafe_code)]

pub(crate) mod sys;
