//! What one client of a storm orders, one thing after the other. The sequence depends on the seed alone: it goes by what
//! would be there if every order were followed, never by what came of one.

use super::dice::Dice;
use amphi_api::instance::BodyKind;

/// Things of one client.
pub const INSTANCES: usize = 4;
pub const VOLUMES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    CreateInstance {
        slot: usize,
        first: BodyKind,
        volume: bool,
        fresh: bool,
    },
    DeleteInstance {
        slot: usize,
        volume: bool,
    },
    Stop {
        slot: usize,
    },
    Start {
        slot: usize,
    },
    Restart {
        slot: usize,
    },
    Exchange {
        slot: usize,
        to: BodyKind,
    },
    /// To the host of this number; none: wherever.
    Move {
        slot: usize,
        to: Option<usize>,
    },
    Cancel {
        slot: usize,
    },
    CreateVolume {
        slot: usize,
    },
    /// To one GiB more than now.
    Extend {
        slot: usize,
    },
    Snapshot {
        slot: usize,
    },
    DeleteSnapshot {
        slot: usize,
    },
    DeleteVolume {
        slot: usize,
    },
    CreateNetwork,
    DeleteNetwork,
}

#[derive(Clone, Copy, Debug, Default)]
struct There {
    instances: [bool; INSTANCES],
    volumes: [bool; VOLUMES],
    snapshots: [bool; VOLUMES],
    network: bool,
}

/// Orders without an end.
pub struct Orders {
    dice: Dice,
    there: There,
    hosts: usize,
}

impl Orders {
    pub fn new(seed: u64, client: u64, hosts: usize) -> Self {
        Self { dice: Dice::new(seed, 1 + client), there: There::default(), hosts }
    }

    fn kind(&mut self) -> BodyKind {
        if self.dice.percent(50) { BodyKind::Set } else { BodyKind::Vm }
    }

    /// The next order, and whether its client waits then until all is as ordered.
    pub fn next(&mut self) -> (Order, bool) {
        let order = match self.dice.below(100) {
            0..74 => self.of_instance(),
            74..94 => self.of_volume(),
            _ if self.there.network => {
                self.there.network = false;
                Order::DeleteNetwork
            }
            _ => {
                self.there.network = true;
                Order::CreateNetwork
            }
        };
        (order, self.dice.percent(20))
    }

    fn of_instance(&mut self) -> Order {
        let slot = self.dice.below(INSTANCES as u64) as usize;
        if !self.there.instances[slot] {
            self.there.instances[slot] = true;
            let (volume, fresh) = (self.dice.percent(40), self.dice.percent(50));
            return Order::CreateInstance { slot, first: self.kind(), volume, fresh };
        }
        match self.dice.below(100) {
            0..25 => {
                self.there.instances[slot] = false;
                Order::DeleteInstance { slot, volume: true }
            }
            25..37 => Order::Stop { slot },
            37..52 => Order::Start { slot },
            52..58 => Order::Restart { slot },
            58..76 => Order::Exchange { slot, to: self.kind() },
            76..94 => {
                let to = self.dice.percent(60).then(|| self.dice.below(self.hosts as u64) as usize);
                Order::Move { slot, to }
            }
            _ => Order::Cancel { slot },
        }
    }

    fn of_volume(&mut self) -> Order {
        let slot = self.dice.below(VOLUMES as u64) as usize;
        if !self.there.volumes[slot] {
            self.there.volumes[slot] = true;
            return Order::CreateVolume { slot };
        }
        let snapshot = self.there.snapshots[slot];
        match self.dice.below(100) {
            0..35 => Order::Extend { slot },
            35..70 => {
                self.there.snapshots[slot] = !snapshot;
                if snapshot { Order::DeleteSnapshot { slot } } else { Order::Snapshot { slot } }
            }
            _ if snapshot => {
                self.there.snapshots[slot] = false;
                Order::DeleteSnapshot { slot }
            }
            _ => {
                self.there.volumes[slot] = false;
                Order::DeleteVolume { slot }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_every_order_comes() {
        let orders = |seed, client| {
            let mut orders = Orders::new(seed, client, 3);
            (0..600).map(|_| orders.next()).collect::<Vec<_>>()
        };
        let first = orders(7, 0);
        assert_eq!(first, orders(7, 0));
        assert_ne!(first, orders(7, 1));
        assert_ne!(first, orders(8, 0));
        let kinds: std::collections::BTreeSet<String> = first
            .iter()
            .map(|(order, _)| format!("{order:?}").split([' ', '{']).next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(kinds.len(), 15, "{kinds:?}");
    }
}
