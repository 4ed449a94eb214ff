//! What is counted, and the one list of reasons that counters, logs and `explain` share.
//!
//! Each worker owns its counters and adds to them without sharing a cache line; the control core adds the workers
//! up. Every datagram that is received ends in exactly one of: forwarded, answered, handed over, dropped, so the sum
//! of these equals [`Counters::received`] and nothing is lost in silence.

pub mod prometheus;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $text:literal;)*) => {
        /// Why a message was not simply forwarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $text] $name,)*
        }

        impl Reason {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)* }
            }

            /// A sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    KeepAlive = "keepalive", "only line ends: a keep-alive, nothing to forward";
    StartLine = "malformed-start-line", "the first line is neither a request nor a status line";
    Version = "sip-version", "the request speaks another version than SIP/2.0";
    HeaderLine = "malformed-header-line", "a header line has no name or no colon";
    TooManyHeaders = "too-many-headers", "more header lines than limits.headers_max";
    Unterminated = "unterminated-headers", "no empty line ends the header section";
    ContentLength = "content-length", "Content-Length is malformed, contradictory or larger than the datagram";
    TooLarge = "too-large", "the message exceeds limits.message_bytes_max";
    MissingHeader = "missing-header", "Via, From, To, Call-ID or CSeq is missing or stands twice";
    MalformedVia = "malformed-via", "the topmost Via cannot be read";
    MalformedUri = "malformed-request-uri", "the Request-URI cannot be read";
    MalformedFromTo = "malformed-from-to", "From or To cannot be read";
    MalformedCSeq = "malformed-cseq", "CSeq cannot be read or names another method";
    MalformedMaxForwards = "malformed-max-forwards", "Max-Forwards is not a number from 0 to 255";
    MalformedRoute = "malformed-route", "a Route value cannot be read";
    UnknownScheme = "unknown-uri-scheme", "the Request-URI has a scheme that is neither sip, sips nor tel";
    TooManyHops = "too-many-hops", "Max-Forwards has reached 0";
    ProxyRequire = "proxy-require", "Proxy-Require names an extension that is not supported";
    EmptyPool = "no-backend", "no backend of the pool is enabled and healthy";
    UnresolvedTarget = "unresolved-target", "the next hop is a name, and only addresses can be followed";
    ForbiddenTarget = "forbidden-target", "the next hop is this node itself or no unicast address";
    NoListener = "no-listener", "no listener of the service has the address family of the next hop";
    SipsOverPlain = "sips-over-plain", "the target is a sips URI and its backend is not reached over TLS";
    FlowGone = "flow-gone", "the connection to the client is closed and it is reached by no other way";
    ConnectFailed = "connect-failed", "no connection could be opened to the next hop";
    QueueFull = "write-queue-full", "the peer does not read what it is sent; its connection was closed";
    ForeignVia = "response-foreign-via", "the topmost Via of the response is not ours";
    BadBranch = "response-bad-branch", "the branch of our Via in the response is forged or signed by an unknown secret";
    NoMoreVia = "response-no-via-left", "below our Via the response has none, so it has no way back";
    UnusableVia = "response-unusable-via", "the Via below ours names no address to answer to";
    AckForAnswer = "ack-absorbed", "the ACK acknowledges an answer that was made here";
    AnswerTooLarge = "answer-suppressed", "the answer would be larger than the request";
    EditFailed = "edit-failed", "the changed message exceeds the largest datagram";
    Framing = "stream-framing", "bytes on a connection that cannot be told apart into messages; it was closed";
    TooManyIdentities = "too-many-identities", "more P-Asserted-Identity lines than are taken out of one message";
    HandOverFull = "handover-full", "the ring to the owning worker is full";
}

/// How many reasons there are.
pub const REASONS: usize = Reason::ALL.len();

/// The counters of one worker; plain numbers, summed by the control core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams from sockets, messages of connections, and answers made for a next hop that was not reached; each also counts in exactly one of the outcomes below, here or at its owner.
    pub received: u64,
    /// Datagrams taken over from another worker.
    pub taken_over: u64,
    /// Datagrams handed to their owner.
    pub handed_over: u64,
    /// Requests forwarded.
    pub requests_forwarded: u64,
    /// Responses forwarded.
    pub responses_forwarded: u64,
    /// Requests answered here, by reason.
    pub answered: [u64; REASONS],
    /// Messages dropped, by reason.
    pub dropped: [u64; REASONS],
    /// Messages that were counted as forwarded or answered and could not leave, by reason.
    pub undeliverable: [u64; REASONS],
    /// Requests too large for UDP that went over a connection.
    pub switched_to_stream: u64,
    /// New dialogs and standalone requests given to a backend by selection.
    pub selected: u64,
    /// Requests that a cookie routed.
    pub routed_by_cookie: u64,
    /// Requests that a binding routed.
    pub routed_by_binding: u64,
    /// Cookies refused: forged, foreign or of an unknown secret.
    pub cookies_refused: u64,
    /// Bindings in the table.
    pub bindings: u64,
    /// Bindings not made since the table was full.
    pub bindings_refused: u64,
    /// Bindings expired.
    pub bindings_expired: u64,
    /// Connections that stand or are being opened.
    pub connections: u64,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections closed at once: the table, a source or the handshakes are at their limit.
    pub connections_refused: u64,
    /// Times that accepting ended, out of file descriptors most likely; it goes on with the next tick.
    pub accepts_failed: u64,
    /// Connections opened to backends and clients.
    pub connections_opened: u64,
    /// Connections that could not be opened.
    pub connects_failed: u64,
    /// TLS or WebSocket handshakes that failed or took too long.
    pub handshakes_failed: u64,
    /// Connections closed by a deadline: idle, or a message, a write or a handshake that did not end.
    pub connections_timed_out: u64,
    /// Connections closed since their bytes could not be told apart into messages.
    pub connections_broken: u64,
    /// Sends that the kernel refused.
    pub sends_failed: u64,
    /// Times the kernel ran out of receive buffers.
    pub receive_buffers_exhausted: u64,
    /// Datagrams that the kernel dropped since the socket buffer was full.
    pub kernel_drops: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            received: 0,
            taken_over: 0,
            handed_over: 0,
            requests_forwarded: 0,
            responses_forwarded: 0,
            answered: [0; REASONS],
            dropped: [0; REASONS],
            undeliverable: [0; REASONS],
            switched_to_stream: 0,
            selected: 0,
            routed_by_cookie: 0,
            routed_by_binding: 0,
            cookies_refused: 0,
            bindings: 0,
            bindings_refused: 0,
            bindings_expired: 0,
            connections: 0,
            connections_accepted: 0,
            connections_refused: 0,
            accepts_failed: 0,
            connections_opened: 0,
            connects_failed: 0,
            handshakes_failed: 0,
            connections_timed_out: 0,
            connections_broken: 0,
            sends_failed: 0,
            receive_buffers_exhausted: 0,
            kernel_drops: 0,
        }
    }
}

impl Counters {
    /// Counts an answer made here.
    pub fn count_answered(&mut self, reason: Reason) {
        self.answered[reason as usize] += 1;
    }

    /// Counts a message that goes nowhere.
    pub fn count_dropped(&mut self, reason: Reason) {
        self.dropped[reason as usize] += 1;
    }

    /// Counts a message that could not leave.
    pub fn count_undeliverable(&mut self, reason: Reason) {
        self.undeliverable[reason as usize] += 1;
    }

    /// Sum of the outcomes; equals `received + taken_over` when no message is on its way.
    pub fn outcomes(&self) -> u64 {
        self.handed_over
            + self.requests_forwarded
            + self.responses_forwarded
            + self.answered.iter().sum::<u64>()
            + self.dropped.iter().sum::<u64>()
    }
}
