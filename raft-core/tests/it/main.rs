//! Tests of the core from outside.

mod bad_input;
mod corpus;
#[path = "../../examples/counter.rs"]
mod counter;
mod driving;
mod explore;
mod fuzz;
mod hand;
mod handover;
mod lab;
mod news;
mod quiescence;
mod review;
mod room;
mod rules;
mod scripts;
mod survivors;
mod swarm;
mod worth;
