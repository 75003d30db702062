//! Flights: who joins, who leaves, and what becomes of the others.

use super::*;
use crate::cache::tape::TAPE_BYTES_MAX;

type Answer = Boarding<&'static str, ()>;

fn board(flights: &Flights<&'static str>) -> Answer {
    flights.board([7; 32], Form::Plain, || None)
}

fn lead(boarding: Answer) -> Leader<&'static str> {
    match boarding {
        Boarding::Lead(leader) => leader,
        Boarding::Fresh(()) | Boarding::Busy(_) => panic!("expected to lead"),
    }
}

fn follow(boarding: Answer) -> Follower<&'static str> {
    match boarding {
        Boarding::Busy(follower) => follower,
        Boarding::Fresh(()) | Boarding::Lead(_) => panic!("expected to follow"),
    }
}

fn chunk(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn whoever_joins_gets_what_there_is_and_then_follows() {
    let flights = Flights::default();
    let leader = lead(board(&flights));
    leader.push(&chunk("one"));
    let mut follower = follow(board(&flights));
    assert_eq!(follower.next().await.chunks, ["one"]);
    leader.push(&chunk("two"));
    leader.push(&chunk("three"));
    assert_eq!(follower.next().await.chunks, ["twothree"]);
    leader.land(Landing::Broken("why"));
    assert_eq!(follower.next().await.landing, Some(Landing::Broken("why")));
    lead(board(&flights));
}

#[tokio::test]
async fn the_leader_may_leave_while_others_follow() {
    let flights = Flights::default();
    let leader = lead(board(&flights));
    let (one, other) = (follow(board(&flights)), follow(board(&flights)));
    assert!(leader.flight().leader_leaves());
    drop(one);
    let third = follow(board(&flights));
    drop(other);
    drop(third);
    leader.flight().abandoned().await;
    let successor = lead(board(&flights));
    leader.land(Landing::Whole);
    let mut follower = follow(board(&flights));
    successor.land(Landing::Whole);
    assert_eq!(follower.next().await.landing, Some(Landing::Whole));
}

#[test]
fn a_leader_that_leaves_alone_closes_its_flight() {
    let flights = Flights::default();
    let leader = lead(board(&flights));
    assert!(!leader.flight().leader_leaves());
    let successor = lead(board(&flights));
    drop(leader);
    drop(follow(board(&flights)));
    drop(successor);
    assert!(matches!(flights.board([7; 32], Form::Plain, || Some(())), Boarding::Fresh(())));
}

#[tokio::test]
async fn what_is_too_large_is_lost_to_its_followers() {
    let flights = Flights::default();
    let leader = lead(board(&flights));
    let mut follower = follow(board(&flights));
    leader.push(&Bytes::from(vec![0; TAPE_BYTES_MAX + 1]));
    assert_eq!(follower.next().await.landing, Some(Landing::Lost));
    lead(board(&flights));
}
