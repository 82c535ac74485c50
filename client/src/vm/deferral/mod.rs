//! What a VM does about regions that are deferrable: who gets a slot, and when.

mod promote;
mod short;
