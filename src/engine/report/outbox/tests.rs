//! What the outbox does with what the broker says.

use bytes::Bytes;

use super::*;
use crate::model::message::{Properties, Qos};
use crate::net::mqtt::Token;

fn queued(seq: u64, bytes: usize) -> Queued {
    Queued {
        seq,
        message: Message {
            topic: "t".into(),
            payload: Bytes::from(vec![b' '; bytes]),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties::default(),
        },
    }
}

/// An outbox with messages 1 to `count`, and a connection on which they are sent.
fn outbox(count: u64) -> Outbox<Token> {
    let mut outbox = Outbox::of_ledger(0);
    outbox.extend((1..=count).map(|seq| queued(seq, 10)));
    outbox
}

/// Sends what may go out, as a session does that takes everything.
fn send(outbox: &mut Outbox<Token>) -> Vec<(u64, Token)> {
    let mut went = Vec::new();
    outbox.answered();
    outbox.flush_by(|queued| {
        let token = Token::new();
        went.push((queued.seq, token));
        Some(token)
    });
    went
}

fn seqs(went: &[(u64, Token)]) -> Vec<u64> {
    went.iter().map(|(seq, _)| *seq).collect()
}

#[test]
fn one_that_costs_the_connection_twice_is_set_aside_and_the_others_go() {
    let mut outbox = outbox(5);
    assert_eq!(seqs(&send(&mut outbox)), [1, 2, 3, 4, 5]);
    assert_eq!(outbox.lost(Loss::Packet), None, "it is unknown which one");
    // The first two pass, the third is the one.
    for seq in [1, 2] {
        let went = send(&mut outbox);
        assert_eq!(went[0].0, seq);
        outbox.lost(Loss::Link);
        let went = send(&mut outbox);
        assert_eq!(seqs(&went), [seq], "one at a time");
        assert!(outbox.complete(went[0].1).is_some());
        outbox.window = 1;
    }
    assert_eq!(seqs(&send(&mut outbox)), [3]);
    assert_eq!(outbox.lost(Loss::Packet), None);
    assert_eq!(seqs(&send(&mut outbox)), [3]);
    let guilty = outbox.lost(Loss::Packet).expect("set aside");
    assert_eq!((guilty.seq, outbox.len()), (3, 2));
    let went = send(&mut outbox);
    assert_eq!(seqs(&went), [4]);
    assert!(outbox.complete(went[0].1).is_some());
    assert_eq!(seqs(&send(&mut outbox)), [5]);
}

#[test]
fn links_that_break_cost_nobody_anything_for_long() {
    let mut outbox = outbox(2);
    for _ in 0..100 {
        send(&mut outbox);
        assert_eq!(outbox.lost(Loss::Link), None, "two were in flight");
        if outbox.window == 1 {
            break;
        }
    }
    assert_eq!(outbox.window, 1);
    // Alone, and no word: after a while it is set aside, so that the others get through.
    let guilty = (1..=MAX_SILENT_COSTS).find_map(|_| {
        send(&mut outbox);
        outbox.lost(Loss::Link)
    });
    assert_eq!(guilty.map(|queued| queued.seq), Some(1));
}

#[test]
fn what_goes_out_beside_one_is_not_its_fault() {
    let mut outbox = outbox(2);
    send(&mut outbox);
    outbox.lost(Loss::Packet);
    let mut went = 0;
    outbox.flush_by(|_| {
        went += 1;
        Some(Token::new())
    });
    assert_eq!(went, 0, "the presence is not answered yet");
    assert_eq!(seqs(&send(&mut outbox)), [1]);
}

#[test]
fn one_that_is_refused_for_now_waits_and_the_others_overtake_it() {
    let mut outbox = outbox(3);
    let went = send(&mut outbox);
    assert!(outbox.retry(went[0].1).is_none());
    assert_eq!(outbox.len(), 3);
    assert!(send(&mut outbox).is_empty(), "paused");
    let wake = outbox.wake().expect("a time");
    assert!(wake > Instant::now());
    assert!(outbox.complete(went[1].1).is_some());
    assert!(outbox.complete(went[2].1).is_some());
    assert_eq!(outbox.len(), 1);
    // It does not hold up the others for ever, and it is not lost.
    let refused = (1..=MAX_TRIES).find_map(|_| {
        outbox.paused_until = None;
        outbox.rows[0].not_before = None;
        let went = send(&mut outbox);
        outbox
            .retry(went[0].1)
            .map(|waits| (waits.first, waits.delay))
    });
    assert_eq!(refused, Some((true, REFUSED)));
    assert_eq!(outbox.len(), 1);
}

#[test]
fn one_that_is_refused_stays_and_the_others_overtake_it() {
    let mut outbox = outbox(3);
    let went = send(&mut outbox);
    let waits = outbox.refuse(went[0].1).expect("ours");
    assert_eq!((waits.first, waits.delay), (true, REFUSED));
    outbox.extend([queued(4, 10)]);
    assert_eq!(seqs(&send(&mut outbox)), [4], "no pause for the others");
    assert!(outbox.complete(went[1].1).is_some());
    assert_eq!((outbox.len(), outbox.refused()), (3, 1));
    assert!(outbox.refuse(Token::new()).is_none(), "not ours");
    // The wait grows up to its limit.
    let delays: Vec<Duration> = (0..8)
        .map(|_| {
            outbox.rows[0].not_before = None;
            let went = send(&mut outbox);
            assert_eq!(seqs(&went), [1]);
            let waits = outbox.refuse(went[0].1).expect("ours");
            assert!(!waits.first);
            waits.delay
        })
        .collect();
    assert!(delays.is_sorted() && delays[0] == REFUSED * 2);
    assert_eq!(delays[7], MAX_REFUSED);
    // Rules may have changed: at a reload, and at a new connection.
    outbox.try_again();
    let went = send(&mut outbox);
    assert_eq!(seqs(&went), [1]);
    outbox.refuse(went[0].1).expect("ours");
    outbox.lost(Loss::Link);
    assert_eq!(seqs(&send(&mut outbox)), [1, 3, 4]);
}

#[test]
fn a_full_memory_of_refused_ones_loses_none() {
    let mut outbox = outbox(MAX_ROWS as u64 + 10);
    loop {
        let went = send(&mut outbox);
        if went.is_empty() {
            break;
        }
        for (_, token) in went {
            outbox.refuse(token).expect("ours");
        }
    }
    assert!(outbox.is_blocked());
    assert_eq!((outbox.refused(), outbox.len()), (MAX_ROWS, MAX_ROWS + 10));
    outbox.try_again();
    assert!(!outbox.is_blocked());
}

#[test]
fn what_finds_no_room_stays_in_the_ledger() {
    let mut outbox = outbox(MAX_ROWS as u64 + 10);
    assert_eq!((outbox.rows.len(), outbox.len()), (MAX_ROWS, MAX_ROWS + 10));
    assert_eq!(outbox.wants(), None, "there is no room");
    while outbox.rows.len() > MAX_ROWS / 2 {
        let went = send(&mut outbox);
        for (_, token) in went {
            outbox.complete(token);
        }
    }
    let after = outbox.wants().expect("room");
    assert_eq!(after, MAX_ROWS as u64);
    let list = (after + 1..=after + 10)
        .map(|seq| queued(seq, 10))
        .collect();
    outbox.load(list, 0);
    assert_eq!(outbox.wants(), None);
    // The last of these was on its way here when the ledger was read.
    outbox.extend([queued(after + 10, 10), queued(after + 11, 10)]);
    assert_eq!(outbox.rows.back().expect("row").queued.seq, after + 11);
    let seqs: Vec<u64> = outbox.rows.iter().map(|row| row.queued.seq).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    // Bytes count too.
    let mut large = Outbox::<Token>::of_ledger(0);
    large.extend((1..=4).map(|seq| queued(seq, MAX_BYTES / 2)));
    assert_eq!((large.rows.len(), large.len()), (2, 4));
}

#[test]
fn the_oldest_go_when_too_many_wait() {
    let mut outbox = outbox(3);
    assert_eq!(outbox.overflow(), None);
    outbox.behind = Some(MAX_WAITING as u64 - 1);
    let gone: Vec<u64> = std::iter::from_fn(|| outbox.overflow())
        .map(|queued| queued.seq)
        .collect();
    assert_eq!(gone, [1, 2]);
    assert_eq!(outbox.dropped(), 2);
}

#[test]
fn nothing_is_due_that_cannot_go_out() {
    let mut outbox = outbox(2);
    for (_, token) in send(&mut outbox) {
        assert_eq!(outbox.retry(token), None);
    }
    let past = Instant::now() - RETRY;
    let be_due = |outbox: &mut Outbox<Token>| {
        outbox.paused_until = outbox.paused_until.map(|_| past);
        for row in &mut outbox.rows {
            row.not_before = row.not_before.map(|_| past);
        }
    };
    be_due(&mut outbox);
    assert_eq!(seqs(&send(&mut outbox)), [1], "one at a time");
    assert_eq!(outbox.wake(), None, "the answer comes first");
    // Without a connection nothing goes out.
    outbox.lost(Loss::Link);
    be_due(&mut outbox);
    outbox.waits_for_other = false;
    outbox.flush(|_| None);
    assert_eq!(outbox.wake(), None);
}
