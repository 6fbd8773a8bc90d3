//! Words that several services share: ids as each writes them, and times.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::Offset;
use uuid::Uuid;

// A format string would be read anew for each time; a list of servers has thousands.
const SECONDS: DateTimePrinter = DateTimePrinter::new().precision(Some(0));
const MICROS: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// Keystone's form of an id: 32 hexadecimal digits. Also what `project_id`, `tenant_id` and `user_id` carry everywhere.
pub fn hex(id: impl Into<Uuid>) -> String {
    id.into().simple().to_string()
}

/// An id in either form, in either case; none: it belongs to nothing.
pub fn id(text: &str) -> Option<Uuid> {
    // Braces and `urn:uuid:` are no forms that a service shows.
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// `2026-11-21T10:15:00Z`: nova, glance, neutron.
pub fn time(at: Timestamp) -> String {
    SECONDS.timestamp_to_string(&at)
}

/// `2026-11-21T10:15:00.000000Z`: keystone.
pub fn keystone_time(at: Timestamp) -> String {
    MICROS.timestamp_to_string(&at)
}

/// `2026-11-21T10:15:00.000000`, without a zone: cinder, and nova where it hands out its database's times.
pub fn cinder_time(at: Timestamp) -> String {
    MICROS.datetime_to_string(&Offset::UTC.to_datetime(at))
}

/// A time as clients send one: with `Z`, with an offset, or with neither, which means UTC; a date alone is its begin.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    // A plus sign in a query that was not escaped arrives as a space.
    let text = text.replacen(' ', if text.matches(':').count() > 2 { "+" } else { "T" }, 1);
    text.parse().ok().or_else(|| {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Offset::UTC.to_timestamp(civil).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at: Timestamp = "2026-11-21T10:15:00.25Z".parse().unwrap();
        assert_eq!(time(at), "2026-11-21T10:15:00Z");
        assert_eq!(keystone_time(at), "2026-11-21T10:15:00.250000Z");
        assert_eq!(cinder_time(at), "2026-11-21T10:15:00.250000");
        for text in [
            "2026-11-21T10:15:00.25Z",
            "2026-11-21T10:15:00.25",
            "2026-11-21 10:15:00.25",
            "2026-11-21T11:15:00.25+01:00",
            "2026-11-21T11:15:00.25 01:00",
        ] {
            assert_eq!(parse_time(text), Some(at), "{text}");
        }
        assert_eq!(parse_time("2026-11-21"), "2026-11-21T00:00:00Z".parse().ok());
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn ids() {
        let one = Uuid::from_u128(0xabc);
        assert_eq!(id(&hex(one)), Some(one));
        assert_eq!(id(&one.to_string().to_uppercase()), Some(one));
        for bad in ["", "x", "{00000000-0000-0000-0000-000000000abc}", "00000000-0000-0000-0000-000000000abz"]
        {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
