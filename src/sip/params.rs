//! `;name=value` lists, as URIs, Via and name-addr carry them.
//!
//! One walker for all: names compare without case, values may be tokens, hosts or quoted strings, white space may
//! stand around `;` and `=` (RFC 3261 25.1 generic-param). The walk ends at the first byte that is none of these,
//! which the caller inspects.

use super::cursor::{Class, Cursor};
use crate::base::span::Span;

/// One parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name as written.
    pub name: Span,
    /// Its value as written, quotes included; `None` without `=`.
    pub value: Option<Span>,
    /// From the semicolon to the end of the value.
    pub whole: Span,
}

/// Takes the next parameter, white space before it included; leaves the cursor untouched when there is none, before
/// a semicolon without a name too, which its callers refuse.
#[inline]
pub(crate) fn next_param(cursor: &mut Cursor<'_>) -> Option<Param> {
    let mut probe = cursor.clone();
    probe.skip_white();
    let start = probe.at();
    if !probe.eat(b';') {
        return None;
    }
    probe.skip_white();
    let name = probe.take(&PARAM);
    if name.is_empty() {
        return None;
    }
    let mut end = probe.at();
    let mut value = None;
    let mut after = probe.clone();
    after.skip_white();
    if after.eat(b'=') {
        after.skip_white();
        let taken = match after.peek() {
            Some(b'"') => after.take_quoted()?,
            // Base64 in branches and tags ends in `=`, whatever the grammar of a token says.
            _ => after.take(&PARAM_VALUE),
        };
        value = Some(taken);
        end = after.at();
        probe = after;
    }
    *cursor = probe;
    Some(Param { name, value, whole: Span::new(start, end) })
}

/// Everything but what ends a parameter in any of the places where one may stand.
static PARAM: Class = Class::but(b";,=><?\" \t\r\n");

static PARAM_VALUE: Class = Class::but(b";,><?\" \t\r\n");

/// The parameter called `name` in `span`, which begins at a semicolon or before one.
pub fn find_param(bytes: &[u8], span: Span, name: &[u8]) -> Option<Param> {
    let mut cursor = Cursor::new(bytes, span);
    while let Some(param) = next_param(&mut cursor) {
        if param.name.of(bytes).eq_ignore_ascii_case(name) {
            return Some(param);
        }
    }
    None
}
