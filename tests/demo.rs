//! The demo as a script sees it: the built binary, one JSON object, exit code 0.
//!
//! A short run at a higher rate, so that shares can be judged: 10 s at 800 calls/s are 4,000 calls before the outage,
//! where 3 points are 3.8 standard deviations of the largest share.

use std::process::Command;

use serde_json::Value;

/// Exit code, standard output, standard error.
fn demo(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem")).arg("demo").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn demo_balances_calls_and_survives_its_outage() {
    let (code, text, errors) = demo(&["--seconds", "10", "--rate", "800", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    assert_eq!(json["ok"], true, "{text}");
    assert_eq!(code, Some(0));
    assert!(json["calls_completed"].as_u64().unwrap() > 1_000, "{text}");
    assert_eq!(json["calls_failed_outside_outage"], 0, "{text}");
    assert_eq!(json["calls_unfinished"], 0, "{text}");
    for backend in json["backends"].as_array().unwrap() {
        let of = |key: &str| backend[key].as_f64().unwrap();
        assert!((of("share_before_outage_percent") - of("expected_share_percent")).abs() <= 3.0, "{text}");
    }
    let outage = &json["outages"][0];
    let moments = ["down_at_s", "detected_at_s", "up_at_s", "back_at_s"].map(|key| outage[key].as_f64().unwrap());
    assert!(moments.is_sorted(), "{text}");
}

#[test]
fn demo_refuses_a_run_too_short_to_show_the_outage() {
    let (code, _, text) = demo(&["--seconds", "3"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--seconds"), "{text}");
}
