//! Chance without bad luck: cards are dealt until none is left, then all are shuffled again.

use raft_core::sim::schedule::Dice;

/// Cards, of which each is dealt once before any is dealt again. The order is the dice's.
#[derive(Debug)]
pub(crate) struct Deck<T: 'static> {
    cards: &'static [T],
    left: Vec<&'static T>,
}

impl<T: Copy> Deck<T> {
    /// Nothing is dealt yet. There must be at least one card.
    pub(crate) fn new(cards: &'static [T]) -> Deck<T> {
        Deck { cards, left: Vec::new() }
    }

    /// The next card.
    pub(crate) fn deal(&mut self, dice: &mut Dice) -> T {
        if self.left.is_empty() {
            self.left = self.cards.iter().collect();
        }
        *self.left.swap_remove(dice.pick(self.left.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_is_dealt_before_any_comes_again() {
        let (mut dice, mut deck) = (Dice::new(3, 0), Deck::new(&[1, 2, 2, 3]));
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let mut hand = [0; 4].map(|_| deck.deal(&mut dice));
            orders.insert(hand);
            hand.sort_unstable();
            assert_eq!(hand, [1, 2, 2, 3]);
        }
        assert!(orders.len() > 5, "in many orders");
    }
}
