//! Tests of the core from outside.

mod bad_input;
mod explore;
mod hand;
mod lab;
mod review;
mod rules;
mod scripts;
mod survivors;
mod swarm;
