use proptest::prelude::*;

use super::{Costs, Policy};

/// What the guest and its device do to regions.
#[derive(Debug, Clone, Copy)]
enum Event {
    Map(usize),
    Unmap(usize),
    Access(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Gone,
    Deferred,
    Mapped,
}

/// Carries `events` out and says what they cost, and how many slots were made.
/// Each region by itself, as if it were the only one.
fn pay(policy: Policy, costs: &Costs, regions: usize, events: &[Event]) -> (u128, u128) {
    let mut state = vec![(State::Gone, 0); regions];
    let (mut cost, mut made) = (0, 0);
    let exit_ns = u128::from(costs.exit_ns);
    let slot_ns = u128::from(costs.slot_ns());
    for event in events {
        match *event {
            Event::Map(r) if state[r].0 == State::Gone => state[r] = (State::Deferred, 0),
            Event::Unmap(r) => state[r] = (State::Gone, 0),
            Event::Access(r) if state[r].0 == State::Deferred => {
                cost += exit_ns;
                state[r].1 += 1;
                if policy.is_due(costs, state[r].1) {
                    cost += slot_ns;
                    made += 1;
                    state[r].0 = State::Mapped;
                }
            }
            Event::Map(_) | Event::Access(_) => {}
        }
    }
    (cost, made)
}

/// What the best choice costs that knows all of `events` before the first: for
/// each stretch between two unmaps of a region, the slot at once or never.
fn best(costs: &Costs, regions: usize, events: &[Event]) -> u128 {
    let choose = |exits: u128| (exits * u128::from(costs.exit_ns)).min(u128::from(costs.slot_ns()));
    let mut exits: Vec<Option<u128>> = vec![None; regions];
    let mut cost = 0;
    for event in events {
        match *event {
            Event::Map(r) => _ = exits[r].get_or_insert(0),
            Event::Unmap(r) => cost += choose(exits[r].take().unwrap_or(0)),
            Event::Access(r) => exits[r].iter_mut().for_each(|n| *n += 1),
        }
    }
    cost + exits.into_iter().flatten().map(choose).sum::<u128>()
}

fn costs() -> impl Strategy<Value = Costs> {
    // Prices of a fraction of an exit up to some hundred of them.
    (1..200_000_u64, 0..400_000_u64, 500..20_000_u64)
        .prop_map(|(map_ns, unmap_ns, exit_ns)| Costs { map_ns, unmap_ns, exit_ns })
}

const REGIONS: usize = 3;

fn random() -> impl Strategy<Value = Vec<Event>> {
    let event = (0..REGIONS).prop_flat_map(|region| {
        prop_oneof![
            1 => Just(vec![Event::Map(region)]),
            1 => Just(vec![Event::Unmap(region)]),
            4 => (0..200_usize).prop_map(move |n| vec![Event::Access(region); n]),
        ]
    });
    prop::collection::vec(event, 0..60).prop_map(|runs| runs.concat())
}

/// Guests that know the policy: in each round the region is unmapped `off`
/// accesses before or after the policy makes the slot, which is where it has
/// most to regret.
fn adversarial(costs: Costs) -> impl Strategy<Value = Vec<Event>> {
    let due = Policy::RentOrBuy.exits(costs.slot_ns(), costs.exit_ns);
    let round = (0..REGIONS, -2..=2_i64).prop_map(move |(region, off)| {
        let accesses = due.saturating_add_signed(off) as usize;
        let mut events = vec![Event::Map(region)];
        events.extend(std::iter::repeat_n(Event::Access(region), accesses));
        events.push(Event::Unmap(region));
        events
    });
    prop::collection::vec(round, 0..20).prop_map(|rounds| rounds.concat())
}

proptest! {
    #[test]
    fn never_costs_more_than_twice_the_best(costs in costs(), events in random()) {
        within_twice(&costs, &events)?;
    }

    #[test]
    fn nor_with_a_guest_that_knows_the_policy(
        (costs, events) in costs().prop_flat_map(|costs| (Just(costs), adversarial(costs)))
    ) {
        within_twice(&costs, &events)?;
    }

    #[test]
    fn and_not_one_exit_more_where_the_price_is_whole_exits(
        (costs, events) in (1..5_000_u64, 1..300_u64)
            .prop_map(|(exit_ns, n)| Costs { map_ns: exit_ns * n, unmap_ns: 0, exit_ns })
            .prop_flat_map(|costs| (Just(costs), adversarial(costs)))
    ) {
        let (paid, _) = pay(Policy::RentOrBuy, &costs, REGIONS, &events);
        prop_assert!(paid <= 2 * best(&costs, REGIONS, &events));
    }
}

fn within_twice(costs: &Costs, events: &[Event]) -> Result<(), TestCaseError> {
    let (paid, made) = pay(Policy::RentOrBuy, costs, REGIONS, events);
    let bound = 2 * best(costs, REGIONS, events) + made * u128::from(costs.exit_ns);
    prop_assert!(paid <= bound, "paid {paid}, at most {bound}");
    Ok(())
}

#[test]
fn fixed_policies_know_no_bound() {
    let costs = Costs { map_ns: 10_000, unmap_ns: 20_000, exit_ns: 1_000 };
    let once = [Event::Map(0), Event::Access(0), Event::Unmap(0)].repeat(10);
    let many = [vec![Event::Map(0)], vec![Event::Access(0); 1_000]].concat();
    // What rent-or-buy is for: neither of these is near the best in both.
    assert_eq!(pay(Policy::Fixed { exits: 1 }, &costs, 1, &once).0, 31 * best(&costs, 1, &once));
    let never = Policy::Fixed { exits: u64::MAX };
    assert!(pay(never, &costs, 1, &many).0 > 33 * best(&costs, 1, &many));
    for events in [&once[..], &many] {
        let (paid, _) = pay(Policy::RentOrBuy, &costs, 1, events);
        assert!(paid <= 2 * best(&costs, 1, events));
    }
}

#[test]
fn odd_costs_overflow_nothing() {
    let most = Costs { map_ns: u64::MAX, unmap_ns: u64::MAX, exit_ns: 0 };
    assert_eq!(Policy::RentOrBuy.exits(most.slot_ns(), most.exit_ns), u64::MAX);
    let free = Costs { map_ns: 0, unmap_ns: 0, exit_ns: 1 };
    assert!(!Policy::RentOrBuy.is_due(&free, 0));
    assert!(Policy::RentOrBuy.is_due(&free, 1));
    assert!(Policy::Fixed { exits: 0 }.is_due(&free, 0));
}
