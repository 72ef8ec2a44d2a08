//! What the load generator's reports are drawn with, for other programs that have figures to show. The generator itself is the binary.

pub mod plot;
