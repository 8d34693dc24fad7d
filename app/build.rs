//! Turns the workspace's models.lock into the constants that `models.rs` includes.

fn main() {
    model_lock::build::constants("../models.lock");
}
