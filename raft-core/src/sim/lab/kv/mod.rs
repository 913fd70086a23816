//! Lab 3: a key-value service whose clerks repeat what got no reply, and whose operations take effect exactly once.

mod clerk;
mod scripts;
mod service;

pub(super) use clerk::Kv;
pub(super) use service::Service;

use scripts::Generic;

use super::{Outcome, Script};

const CALM: Generic = Generic { clients: 1, crash: false, partitions: false, random_keys: false };
const FIVE: Generic = Generic { clients: 5, ..CALM };
const RANDOM: Generic = Generic { clients: 15, crash: true, partitions: true, random_keys: true };

macro_rules! generic {
    ($($name:ident: $how:expr),* $(,)?) => {
        $(
            pub(super) fn $name(t: Kv) -> Script {
                Box::pin(scripts::generic(t, $how))
            }
        )*
    };
}

generic!(
    one_client: CALM,
    five_clients: FIVE,
    partitions_one_client: Generic { partitions: true, ..CALM },
    partitions_many_clients: Generic { partitions: true, ..FIVE },
    persist_one_client: Generic { crash: true, ..CALM },
    persist_twenty_clients: Generic { clients: 20, crash: true, ..CALM },
    persist_many_clients: Generic { crash: true, ..FIVE },
    persist_partition: Generic { crash: true, partitions: true, ..FIVE },
    persist_partition_random_keys: RANDOM,
);

pub(super) async fn speed(t: Kv) -> Outcome {
    scripts::speed(t).await
}

pub(super) async fn left_behind(t: Kv) -> Outcome {
    scripts::left_behind(t).await
}

pub(super) async fn small_state(t: Kv) -> Outcome {
    scripts::small_state(t).await
}

pub(super) async fn one_key(t: Kv) -> Outcome {
    scripts::one_key(t).await
}

pub(super) async fn one_partition(t: Kv) -> Outcome {
    scripts::one_partition(t).await
}
