use super::super::counted::Running;
use super::*;

const MACHINE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn connections(max: usize, bytes: u64) -> (Connections, Memory) {
    let memory = Memory::new(bytes);
    let shared = memory.clone();
    (Connections::new(max, move || shared.clone()), memory)
}

/// Asks for a place once.
fn ask(connections: &Connections, peer: IpAddr) -> Poll<Result<Place, &'static str>> {
    let mut turn = PlaceInQueue::new(connections.clone());
    connections.poll_admit(peer, &mut turn, &Context::from_waker(Waker::noop()))
}

/// A place that is free, or becomes free as those that were chosen end.
fn admit(connections: &Connections, peer: IpAddr, places: &mut Vec<Place>) {
    let admitted = ask(connections, peer);
    places.retain(|place| !place.line.must_end());
    let admitted = if admitted.is_pending() {
        ask(connections, peer)
    } else {
        admitted
    };
    let Poll::Ready(Ok(place)) = admitted else {
        panic!("there is no place")
    };
    places.push(place);
}

fn several(count: usize, connections: &Connections, peer: IpAddr) -> Vec<Place> {
    let mut places = Vec::new();
    (0..count).for_each(|_| admit(connections, peer, &mut places));
    places
}

/// Reads what arrived of a head; whether it may.
fn read(place: &mut Place, bytes: usize) -> Poll<bool> {
    let mut rest = bytes;
    while rest > 0 {
        match place.poll_room(rest, &Context::from_waker(Waker::noop())) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(read)) if read > 0 => place.has_read(read),
            Poll::Ready(_) => return Poll::Ready(false),
        }
        rest = bytes.saturating_sub(place.head);
    }
    Poll::Ready(true)
}

#[test]
fn one_that_is_idle_for_longest_makes_room_and_one_with_a_request_does_not() {
    let (connections, memory) = connections(4, 64 << 20);
    let mut places = several(4, &connections, MACHINE);
    let request = Running::new(Arc::clone(&places[0].line));
    for (number, place) in places.iter().enumerate() {
        place
            .line
            .idle_since
            .store(number as u64 + 1, Ordering::Relaxed);
    }
    assert!(
        ask(&connections, MACHINE).is_pending(),
        "two will make room"
    );
    let closing = |places: &[Place]| {
        places
            .iter()
            .map(|place| place.line.must_end())
            .collect::<Vec<_>>()
    };
    assert_eq!(closing(&places), [false, true, true, false]);
    assert!(ask(&connections, MACHINE).is_pending(), "none has ended");
    admit(&connections, MACHINE, &mut places);
    assert_eq!(closing(&places), [false; 3], "one place is left");
    admit(&connections, MACHINE, &mut places);
    let requests: Vec<Running> = places[1..]
        .iter()
        .map(|place| Running::new(Arc::clone(&place.line)))
        .collect();
    assert!(
        matches!(ask(&connections, MACHINE), Poll::Ready(Err(_))),
        "all have a request"
    );
    drop((request, requests, places));
    let table = connections.0.table.lock();
    assert_eq!(
        (
            memory.used(),
            table.open.len(),
            table.closing.len(),
            table.closing_bytes
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(
        (
            table.waiting.len(),
            table.waiting_bytes,
            table.waiting_places
        ),
        (0, 0, 0)
    );
    assert!(table.peers.is_empty());
}

#[test]
fn one_whose_request_begins_as_it_was_chosen_stays_and_others_are_chosen() {
    let (connections, _memory) = connections(4, 64 << 20);
    let mut places = several(4, &connections, MACHINE);
    assert!(ask(&connections, MACHINE).is_pending());
    let chosen: Vec<usize> = (0..4).filter(|at| places[*at].line.must_end()).collect();
    let requests: Vec<Running> = chosen
        .iter()
        .map(|at| Running::new(Arc::clone(&places[*at].line)))
        .collect();
    assert!(
        chosen.iter().all(|at| !places[*at].line.must_end())
            && connections.0.table.lock().closing.is_empty()
    );
    assert!(ask(&connections, MACHINE).is_pending());
    assert!(
        (0..4).all(|at| places[at].line.must_end() != chosen.contains(&at)),
        "the two others"
    );
    admit(&connections, MACHINE, &mut places);
    drop((requests, places));
    assert!(connections.0.table.lock().peers.is_empty());
}

#[test]
fn address_with_many_connections_makes_room_for_itself() {
    let (connections, _memory) = connections(256, 64 << 20);
    let peer = IpAddr::from([192, 0, 2, 1]);
    let mut others = several(1, &connections, IpAddr::from([192, 0, 2, 2]));
    let mut places = several(32, &connections, peer);
    let first = Arc::clone(&places[0].line);
    admit(&connections, peer, &mut places);
    assert!(first.must_end() && !others[0].line.must_end());
    let mut busy: Vec<Running> = places
        .iter()
        .map(|place| Running::new(Arc::clone(&place.line)))
        .collect();
    let mut more = Vec::new();
    while let Poll::Ready(Ok(place)) = ask(&connections, peer) {
        busy.push(Running::new(Arc::clone(&place.line)));
        more.push(place);
        assert!(more.len() < 8, "they are all busy");
    }
    admit(&connections, MACHINE, &mut others);
    drop((more, busy));
}

#[test]
fn unfinished_heads_have_a_limit_together_and_the_oldest_ones_are_closed() {
    let (connections, memory) = connections(1_000, 16 << 20);
    let small = several(1, &connections, MACHINE);
    small[0].line.idle_since.store(1_000, Ordering::Relaxed);
    let mut places: Vec<Option<Place>> = several(200, &connections, MACHINE)
        .into_iter()
        .map(Some)
        .collect();
    let mut has_waited = false;
    for number in 0..200 {
        let mut place = places[number]
            .take()
            .expect("it is none of those that were chosen");
        place
            .line
            .idle_since
            .store(number as u64 + 1, Ordering::Relaxed);
        let mut has_read = read(&mut place, 60_000);
        if has_read.is_pending() {
            has_waited = true;
            assert_eq!(
                read(&mut place, 60_000),
                Poll::Pending,
                "nothing is free before one has ended"
            );
            // As the tasks of the chosen ones would.
            places
                .iter_mut()
                .for_each(|other| drop(other.take_if(|other| other.line.must_end())));
            has_read = read(&mut place, 60_000);
        }
        assert_eq!(has_read, Poll::Ready(true), "there is memory again");
        assert!(
            memory.used_for(Purpose::Connection) <= 4 << 20,
            "{}",
            memory.used()
        );
        places[number] = Some(place);
    }
    assert!(
        has_waited && places[0].is_none() && places[199].is_some() && !small[0].line.must_end()
    );
    drop((small, places));
    assert_eq!(memory.used(), 0);
}

#[test]
fn connection_that_is_used_for_long_is_charged_for_one_head() {
    let (connections, memory) = connections(4, 64 << 20);
    let mut places = several(1, &connections, MACHINE);
    for _ in 0..1_000 {
        assert_eq!(read(&mut places[0], 500), Poll::Ready(true));
        drop(Running::new(Arc::clone(&places[0].line)));
    }
    assert_eq!(memory.used(), CONNECTION_BYTES as u64);
}

#[test]
fn body_is_read_in_parts_if_there_is_no_memory_for_a_larger_buffer() {
    let (connections, memory) = connections(4, CONNECTION_BYTES as u64 * 4);
    let mut places = several(1, &connections, MACHINE);
    let request = Running::new(Arc::clone(&places[0].line));
    let room = places[0].poll_room(1 << 20, &Context::from_waker(Waker::noop()));
    assert!(matches!(room, Poll::Ready(Ok(BUFFER_BYTES))), "{room:?}");
    places[0].has_read(BUFFER_BYTES);
    let room = places[0].poll_room(1 << 20, &Context::from_waker(Waker::noop()));
    assert!(matches!(room, Poll::Ready(Ok(BUFFER_BYTES))), "{room:?}");
    drop((request, places));
    assert_eq!(memory.used(), 0);
}

#[test]
fn client_that_reads_nothing_makes_room_if_nobody_is_idle() {
    let begun = Instant::now()
        .checked_sub(Duration::from_secs(60))
        .expect("the machine runs for longer");
    let connections = Connections::since(begun, 1, Box::new(Memory::unlimited));
    let mut places = several(1, &connections, MACHINE);
    let line = Arc::clone(&places[0].line);
    let request = Running::new(Arc::clone(&line));
    line.waits_to_write();
    assert!(
        matches!(ask(&connections, MACHINE), Poll::Ready(Err(_))),
        "it may be slow"
    );
    line.writing_since.store(1, Ordering::Relaxed);
    admit(&connections, MACHINE, &mut places);
    assert!(
        line.is_broken() && !places[0].line.must_end(),
        "it was slow for long"
    );
    drop(request);
}

#[test]
fn answer_that_waits_in_a_stream_is_given_time_and_makes_room_if_it_is_left() {
    let begun = Instant::now()
        .checked_sub(Duration::from_secs(600))
        .expect("the machine runs for longer");
    let connections = Connections::since(begun, 1, Box::new(Memory::unlimited));
    let mut places = several(1, &connections, MACHINE);
    let line = Arc::clone(&places[0].line);
    // Its request is over for us: the answer lies in a buffer.
    let (small, large) = (line.begin_unread(0), line.begin_unread(8 << 20));
    assert!(line.is_answering() && !line.is_overdue());
    assert!(
        matches!(ask(&connections, MACHINE), Poll::Ready(Err(_))),
        "it is not idle"
    );
    line.unread
        .lock()
        .values_mut()
        .for_each(|unread| (unread.since, unread.until) = (1, unread.until - 60_000));
    assert!(line.is_overdue(), "a small one had its time");
    line.end_unread(small);
    assert!(!line.is_overdue(), "a large one takes longer");
    admit(&connections, MACHINE, &mut places);
    assert!(line.is_broken() || line.must_end(), "it makes room");
    line.end_unread(large);
    assert!(!line.is_answering());
}
