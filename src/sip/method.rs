//! Request methods, as far as routing treats them differently (RFC 3261 7.1; case matters).

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Starts or changes a session.
    Invite,
    /// Acknowledges a final response to INVITE; is never answered.
    Ack,
    /// Ends a session.
    Bye,
    /// Gives up an INVITE.
    Cancel,
    /// Binds an address of record to contacts.
    Register,
    /// Makes an event dialog (RFC 6665).
    Subscribe,
    /// Makes an implicit event dialog (RFC 3515).
    Refer,
    /// Any other, known to others or not.
    Other,
}

impl Method {
    /// Decodes the method token.
    pub fn decode(token: &[u8]) -> Method {
        match token {
            b"INVITE" => Method::Invite,
            b"ACK" => Method::Ack,
            b"BYE" => Method::Bye,
            b"CANCEL" => Method::Cancel,
            b"REGISTER" => Method::Register,
            b"SUBSCRIBE" => Method::Subscribe,
            b"REFER" => Method::Refer,
            _ => Method::Other,
        }
    }

    /// Can it make a dialog, so that Record-Route has an effect?
    pub fn makes_dialog(self) -> bool {
        matches!(self, Method::Invite | Method::Subscribe | Method::Refer)
    }
}
