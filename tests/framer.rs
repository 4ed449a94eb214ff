//! The stream framer against its slow, obvious twin, against the scan, and on the inputs that broke others.
//!
//! The twin asks of every prefix of the stream, from the shortest on, whether it is a frame or an error by what the
//! RFC says about it; so what it finds cannot depend on how the bytes were split. `PROPTEST_CASES` sets the number of
//! cases a test.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tandem::base::prng::Prng;
use tandem::fuzzing::frame;
use tandem::fuzzing::framing::{Reading, check_scan, read, read_naively};
use tandem::sip::frame::{Frame, FrameError, FrameErrorKind, Framer, START_LINE_MAX};
use tandem::sip::scan::Scan;

const MAX: usize = 65_507;

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![60 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 3 => Just("\r\n "), 2 => Just("\r\n\t"), 1 => Just("\r\r\n")]
}

fn header() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => "(Content-Length|content-length|l|L|CONTENT-LENGTH)",
        3 => "(Subject|Via|Content-Lengt|Content-Lengths|C|c|ll|X)",
        1 => "[ -~]{0,4}",
    ];
    let colon = prop_oneof![8 => Just(": "), 4 => Just(":"), 2 => Just(" \t: "), 2 => Just(":\r\n "), 1 => Just("\r\n :"), 1 => Just("")];
    let value = prop_oneof![
        6 => "(0|3|03|7)[ \t]{0,2}",
        1 => "[0-9]{1,3}",
        1 => "[0-9]{9,40}",
        1 => "(|-1|\\+5|0x5|3 2|3,3|3\0|3;x|3\r\n |3\r\n 3)",
        1 => "[ -~]{0,12}",
    ];
    (name, colon, value).prop_map(|(name, colon, value)| format!("{name}{colon}{value}"))
}

/// A message that is nearly one.
fn broken_message() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        8 => Just("OPTIONS sip:a SIP/2.0".to_owned()),
        4 => Just("SIP/2.0 200 OK".to_owned()),
        1 => "(INVITE  sip:a SIP/9|a sip/2\\.0| b SIP/2\\.0|SIP/|SIP|X b SIP|GET / HTTP/1\\.1|\u{e9}X)",
        1 => "(A\0B c SIP/2\\.0|A bcdefghijkl\0mn SIP/2\\.0|A b\tc SIP/2\\.0)",
    ];
    let body =
        prop_oneof![6 => Just("abc"), 3 => Just(""), 2 => Just("abcdefg"), 1 => Just("SIP/2.0 1"), 1 => Just("\r\n\r")];
    let headers = prop::collection::vec((header(), line_end()), 0..4);
    (start, line_end(), headers, body).prop_map(|(start, first_end, headers, body)| {
        let headers: String = headers.iter().map(|(header, end)| format!("{header}{end}")).collect();
        format!("{start}{first_end}{headers}\r\n{body}")
    })
}

/// A stream that is nearly one of messages: every rule is kept most of the time and broken some of the time.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let between = prop_oneof![6 => Just(""), 3 => Just("\r\n"), 3 => Just("\r\n\r\n"), 1 => Just("\r\n\r\n\r\n"), 1 => Just("\n")];
    let message = prop_oneof![
        4 => ("(l|Content-Length) ?", "(\r\n )?0{0,2}", "[a-z\r\n:]{0,12}", "(S: x\r\n|v: \r\n y\r\n){0,2}").prop_map(|(name, zeros, body, more)| {
            format!("OPTIONS sip:a SIP/2.0\r\n{name}: {zeros}{}\r\n{more}\r\n{body}", body.len())
        }),
        2 => broken_message(),
    ];
    prop::collection::vec((between, message), 0..4).prop_map(|messages| {
        messages.iter().map(|(between, message)| format!("{between}{message}")).collect::<String>().into_bytes()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_a_stream_gives_the_frames_of_the_twin(limit in any::<u8>(), seed in any::<u8>(), stream in stream()) {
        frame(&[&[limit, seed], &stream[..]].concat());
    }

    #[test]
    fn any_split_of_a_cut_and_spoilt_stream_does_too(
        limit in 20u8.., seed in any::<u8>(), mut stream in stream(),
        spoil in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"\r\n :l0\0\x80S".to_vec())), 0..3),
        end in any::<prop::sample::Index>(),
    ) {
        stream.truncate(end.index(stream.len() + 1));
        let len = stream.len();
        if len > 0 {
            spoil.iter().for_each(|(at, byte)| stream[at.index(len)] = *byte);
        }
        frame(&[&[limit, seed], &stream[..]].concat());
    }

    #[test]
    fn any_split_of_arbitrary_bytes_does_too(data in prop::collection::vec(any::<u8>(), 0..200), text in "[l:0-9\r\n \tSIP/2.0A]{0,120}") {
        frame(&data);
        frame(text.as_bytes());
        frame(&[b"\xff\x07A B SIP/2.0\r\n", text.as_bytes()].concat());
    }
}

#[test]
fn the_generated_streams_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut messages, mut pings, mut errors) = (0, 0, std::collections::BTreeSet::new());
    for _ in 0..3000 {
        let stream = stream().new_tree(&mut runner).unwrap().current();
        let reading = read(&stream, [], 120);
        messages += usize::from(reading.frames.iter().filter(|f| matches!(f, Frame::Message(_))).count() > 1);
        pings += usize::from(reading.frames.contains(&Frame::Ping(2)));
        errors.extend(reading.error.map(|error| format!("{:?} {}", error.kind, error.head.is_some())));
    }
    assert!(messages > 300 && pings > 300, "{messages} streams of several messages, {pings} with a ping");
    let wanted = [
        "BareLineEnd false",
        "ContradictedContentLength true",
        "MalformedContentLength true",
        "MissingContentLength true",
        "NotSip false",
        "TooLarge false",
        "TooLarge true",
    ];
    assert_eq!(errors.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
}

/// What tests/data/regress/tcp.tsv calls the outcome; see its first line.
fn outcome(bytes: &[u8], reading: &Reading) -> String {
    let mut words = Vec::new();
    let (mut start, mut scan) = (0, Scan::with_capacity(256));
    for frame in &reading.frames {
        let (Frame::Message(len) | Frame::Ping(len) | Frame::Skip(len)) = *frame else { unreachable!() };
        match frame {
            Frame::Message(_) if scan.scan(&bytes[start..start + len]).is_ok() => words.push("FORWARD"),
            Frame::Message(_) => words.push("400"),
            Frame::Ping(_) => words.push("PONG"),
            Frame::Skip(_) | Frame::Incomplete => {}
        }
        start += len;
    }
    match reading.error {
        Some(FrameError { kind: FrameErrorKind::TooLarge, head: Some(_) }) => words.extend(["513", "CLOSE"]),
        Some(FrameError { head: Some(_), .. }) => words.extend(["400", "CLOSE"]),
        Some(_) => words.push("CLOSE"),
        None if reading.is_mid_message => words.push("WAIT"),
        None => {}
    }
    words.join(" ")
}

fn rows(file: &str) -> Vec<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regress");
    let text = fs::read_to_string(folder.join(file)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn case(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regress").join(name)).unwrap()
}

#[test]
fn inputs_that_broke_others_end_as_the_table_says_under_every_split() {
    let table = rows("tcp.tsv");
    let cases: Vec<_> = rows("index.tsv").into_iter().filter(|row| row[1] == "tcp").collect();
    assert_eq!(cases.len(), table.len());
    let mut prng = Prng::new(7);
    for (row, told) in cases.iter().zip(&table) {
        let (name, expected) = (&row[0], &row[3]);
        assert_eq!(name, &told[0], "tcp.tsv has the order of index.tsv");
        let bytes = case(name);
        let whole = read(&bytes, [], MAX);
        assert_eq!(outcome(&bytes, &whole), told[1], "{name}");
        // What the index says in words, as far as words can be checked.
        let messages = whole.frames.iter().filter(|f| matches!(f, Frame::Message(_))).count();
        let is_two = ["both messages processed", "processed separately", "both requests answered"];
        if is_two.iter().any(|words| expected.contains(words)) {
            assert_eq!((messages, whole.error), (2, None), "{name}: {expected}");
        }
        if ["connection closed", "closed", "reject+close"].iter().any(|word| expected.starts_with(word)) {
            assert!(messages == 0 && whole.error.is_some(), "{name}: {expected}");
        }
        if expected.contains("SMUGGLED never") {
            let used = whole
                .frames
                .iter()
                .map(|f| if let Frame::Message(n) | Frame::Skip(n) | Frame::Ping(n) = f { *n } else { 0 })
                .sum();
            assert!(!String::from_utf8_lossy(&bytes[..used]).contains("SMUGGLED"), "{name}: {expected}");
        }
        check_scan(&bytes, &whole);
        // Behind the limit every cut comes after the error.
        let end = bytes.len().min(MAX + 2);
        for cut in (0..=end).step_by(1 + end / 3000) {
            assert_eq!(read(&bytes, [cut], MAX), whole, "{name} cut at {cut}");
        }
        for _ in 0..200 {
            let mut cuts: Vec<usize> = (0..1 + prng.below(20)).map(|_| prng.below(end as u64 + 1) as usize).collect();
            cuts.sort_unstable();
            assert_eq!(read(&bytes, cuts.iter().copied(), MAX), whole, "{name} cut at {cuts:?}");
        }
        assert_eq!(read(&bytes, 0..bytes.len(), MAX), whole, "{name} byte by byte");
        if bytes.len() < 2000 {
            assert_eq!(read_naively(&bytes, MAX), whole, "{name}");
        }
    }
}

/// Feeds a stream byte by byte and makes an error of every byte that the framer has no reason to read again.
fn read_with_poison(bytes: &[u8], keep: impl Fn(usize) -> bool) -> Reading {
    let mut framer = Framer::new(MAX);
    let mut reading = Reading::default();
    let mut seen = Vec::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        seen.push(*byte);
        match framer.next(&seen) {
            Ok(Frame::Incomplete) => {}
            Ok(frame) => reading.frames.push(frame),
            Err(error) => {
                reading.error = Some(error);
                break;
            }
        }
        // A CR that may yet end a line is looked at with the byte after it.
        if *byte != b'\r' {
            (at.saturating_sub(1)..=at).filter(|at| !keep(*at)).for_each(|at| seen[at] = b'\n');
        }
    }
    reading
}

#[test]
fn no_byte_is_searched_twice_however_the_bytes_come() {
    let head = "OPTIONS sip:a SIP/2.0\r\nContent-Length: 32000\r\nSubject:";
    let mut stream = format!("{head}{}\r\n\r\n", "s".repeat(32_000));
    let head_end = stream.len();
    stream.push_str(&"b".repeat(32_000));
    // Start line and Content-Length are read once more when their lines are whole, of other lines the name.
    let read = read_with_poison(stream.as_bytes(), |at| at < head.len());
    assert_eq!((read.frames, read.error), (vec![Frame::Message(head_end + 32_000)], None));
    // A line that is done with is not looked at even for that.
    let lines = format!("OPTIONS sip:a SIP/2.0\r\nl:0\r\n{}\r\n", "X: y\r\n".repeat(500));
    let whole = lines.len();
    let line_start = |at: usize| lines[..=at].rfind('\n').map_or(0, |lf| lf + 1);
    let mut framer = Framer::new(MAX);
    let mut seen = Vec::new();
    for (at, byte) in lines.bytes().enumerate() {
        seen.push(byte);
        let frame = framer.next(&seen);
        assert_eq!(frame, Ok(if at + 1 == whole { Frame::Message(whole) } else { Frame::Incomplete }));
        let start = line_start(at);
        seen[..start].fill(b'\n');
    }
}

#[test]
fn the_poison_is_seen_by_a_framer_that_starts_over() {
    let stream = b"OPTIONS sip:a SIP/2.0\r\nl:0\r\nSubject: x\r\n\r\n";
    let mut poisoned = stream.to_vec();
    poisoned[38] = b'\n';
    assert!(Framer::new(MAX).next(&poisoned).is_err());
}

#[test]
fn limits_hold_to_the_byte() {
    let kind = |bytes: &[u8], max| read(bytes, [], max).error.map(|error| (error.kind, error.head));
    let message = b"OPTIONS sip:a SIP/2.0\r\nl: 3\r\n\r\nabc";
    let head = message.len() - 3;
    assert_eq!(read(message, [], message.len()).frames, [Frame::Message(message.len())]);
    assert_eq!(kind(message, message.len() - 1), Some((FrameErrorKind::TooLarge, Some(head))));
    assert_eq!(kind(message, head), Some((FrameErrorKind::TooLarge, Some(head))));
    assert_eq!(kind(message, head - 1), Some((FrameErrorKind::TooLarge, None)));
    let start_line = |len: usize| format!("OPTIONS sip:{} SIP/2.0\r\n", "a".repeat(len - 22));
    assert_eq!(kind(start_line(START_LINE_MAX).as_bytes(), MAX), None);
    let too_long = start_line(START_LINE_MAX + 1);
    assert_eq!(kind(too_long.as_bytes(), MAX), Some((FrameErrorKind::StartLineTooLong, None)));
    // Told without the line end too.
    assert_eq!(kind(&too_long.as_bytes()[..START_LINE_MAX], MAX), None);
    assert_eq!(kind(&[b'a'; START_LINE_MAX + 1], MAX), Some((FrameErrorKind::StartLineTooLong, None)));
}

#[test]
fn other_protocols_are_told_from_their_first_bytes() {
    let error_after = |bytes: &[u8]| (0..=bytes.len()).find(|end| read(&bytes[..*end], [], MAX).error.is_some());
    assert_eq!(error_after(b"\x16\x03\x01\x02\x00\x01\x00"), Some(1));
    assert_eq!(error_after(b"PROXY\x00"), Some(6));
    assert_eq!(error_after(b"\r\n\r\n\x00\r\nQUIT\n"), Some(5));
    assert_eq!(error_after(b"GET / HTTP/1.1\r\n"), Some(16));
    assert_eq!(error_after(b"<html>"), Some(1));
    // A wrong request line is still one that an answer can be given to.
    assert_eq!(error_after(b"INVITE  sip:a b c SIP/7.0\r\n"), None);
    assert_eq!(error_after(b"sip/2.0 999 \x00\r\n"), Some(13));
}

#[test]
fn two_line_ends_are_a_ping_and_parity_begins_anew_with_each_message() {
    let message = "OPTIONS sip:a SIP/2.0\r\nl:0\r\n\r\n";
    let (skip, ping, whole) = (Frame::Skip(2), Frame::Ping(2), Frame::Message(message.len()));
    let frames = |text: String| read(text.as_bytes(), 0..text.len(), MAX).frames;
    assert_eq!(frames("\r\n".repeat(4)), [skip, ping, skip, ping]);
    assert_eq!(frames(format!("\r\n{message}\r\n\r\n\r\n{message}\r\n")), [skip, whole, skip, ping, skip, whole, skip]);
    assert!(!read(b"\r\n\r", [], MAX).is_mid_message && read(b"\r\nO", [], MAX).is_mid_message);
}
