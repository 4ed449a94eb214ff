//! Counters as text, in the Prometheus exposition format: one line a sample, labels for worker and reason.

use std::fmt::Write;

use super::{Counters, Reason};

type Field = (&'static str, &'static str, fn(&Counters) -> u64);

const FIELDS: &[Field] = &[
    ("received_total", "Datagrams received from sockets.", |c| c.received),
    ("taken_over_total", "Datagrams taken over from another worker.", |c| c.taken_over),
    ("handed_over_total", "Datagrams handed to their owner.", |c| c.handed_over),
    ("requests_forwarded_total", "Requests forwarded.", |c| c.requests_forwarded),
    ("responses_forwarded_total", "Responses forwarded.", |c| c.responses_forwarded),
    ("selected_total", "Requests given to a backend by selection.", |c| c.selected),
    ("routed_by_cookie_total", "Requests that a cookie routed.", |c| c.routed_by_cookie),
    ("routed_by_binding_total", "Requests that a binding routed.", |c| c.routed_by_binding),
    ("cookies_refused_total", "Cookies forged, foreign or of an unknown secret.", |c| c.cookies_refused),
    ("bindings", "Bindings in the table.", |c| c.bindings),
    ("bindings_refused_total", "Bindings not made since the table was full.", |c| c.bindings_refused),
    ("bindings_expired_total", "Bindings expired.", |c| c.bindings_expired),
    ("connections", "Connections that stand or are being opened.", |c| c.connections),
    ("connections_accepted_total", "Connections accepted.", |c| c.connections_accepted),
    ("connections_refused_total", "Connections closed at once, at a limit.", |c| c.connections_refused),
    ("accepts_failed_total", "Times that accepting ended for a while.", |c| c.accepts_failed),
    ("connections_opened_total", "Connections opened.", |c| c.connections_opened),
    ("connects_failed_total", "Connections that could not be opened.", |c| c.connects_failed),
    ("handshakes_failed_total", "TLS or WebSocket handshakes failed.", |c| c.handshakes_failed),
    ("connections_timed_out_total", "Connections closed by a deadline.", |c| c.connections_timed_out),
    ("connections_broken_total", "Connections closed for their framing.", |c| c.connections_broken),
    ("switched_to_stream_total", "Requests too large for UDP that went over a connection.", |c| c.switched_to_stream),
    ("sends_failed_total", "Sends that the kernel refused.", |c| c.sends_failed),
    ("receive_buffers_exhausted_total", "Times the kernel found no receive buffer.", |c| c.receive_buffers_exhausted),
    ("kernel_drops_total", "Datagrams dropped by the kernel, socket buffer full.", |c| c.kernel_drops),
];

/// Renders the counters of all workers; workers are numbered by their place in the slice.
pub fn render(workers: &[Counters]) -> String {
    let mut text = String::new();
    for (name, help, value) in FIELDS {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        render_head(&mut text, name, help, kind);
        for (worker, counters) in workers.iter().enumerate() {
            let _ = writeln!(text, "tandem_{name}{{worker=\"{worker}\"}} {}", value(counters));
        }
    }
    render_reasons(&mut text, "answered_total", "Requests answered here.", workers, |c| &c.answered);
    render_reasons(&mut text, "dropped_total", "Messages dropped.", workers, |c| &c.dropped);
    let help = "Messages forwarded or answered that could not leave.";
    render_reasons(&mut text, "undeliverable_total", help, workers, |c| &c.undeliverable);
    text
}

/// The two lines that precede the samples of a metric.
pub fn render_head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(text, "# HELP tandem_{name} {help}\n# TYPE tandem_{name} {kind}");
}

/// One sample of a backend.
pub fn render_backend(text: &mut String, name: &str, worker: u16, backend: &str, value: u64) {
    let backend = backend.replace('\\', "\\\\").replace('"', "\\\"");
    let _ = writeln!(text, "tandem_{name}{{worker=\"{worker}\",backend=\"{backend}\"}} {value}");
}

/// One quantile of a summary.
pub fn render_quantile(text: &mut String, name: &str, worker: u16, quantile: f64, value: f64) {
    let _ = writeln!(text, "tandem_{name}{{worker=\"{worker}\",quantile=\"{quantile}\"}} {value}");
}

fn render_reasons(text: &mut String, name: &str, help: &str, workers: &[Counters], pick: fn(&Counters) -> &[u64]) {
    render_head(text, name, help, "counter");
    for (worker, counters) in workers.iter().enumerate() {
        for (reason, count) in Reason::ALL.iter().zip(pick(counters)).filter(|(_, n)| **n > 0) {
            let _ = writeln!(text, "tandem_{name}{{worker=\"{worker}\",reason=\"{}\"}} {count}", reason.label());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_names_its_worker_and_reason() {
        let mut one = Counters { received: 7, ..Counters::default() };
        one.count_dropped(Reason::StartLine);
        let text = render(&[Counters::default(), one]);
        assert!(text.contains("tandem_received_total{worker=\"1\"} 7\n"));
        assert!(text.contains("tandem_dropped_total{worker=\"1\",reason=\"malformed-start-line\"} 1\n"));
        assert!(text.contains("# TYPE tandem_bindings gauge\n"));
    }
}
