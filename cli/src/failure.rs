//! How a command ends badly: what, which field, what to do next, and the exit code.

use crate::table::clean;
use amphi_api::client::ClientError;
use amphi_api::{ErrorCode, FieldError};
use std::process::ExitCode;

#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// See the exit codes in `--help`.
    pub code: u8,
    pub what: String,
    pub field: Option<String>,
    pub next: Option<String>,
}

impl Failure {
    pub fn new(code: u8, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), field: None, next: None }
    }

    /// An exit code, and nothing to say: it was said.
    pub fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// As it appears on stderr. Text of others may come from an engine: no control characters get through.
    pub fn text(&self) -> String {
        let mut text = format!("error: {}\n", clean(&self.what));
        if let Some(field) = &self.field {
            text += &format!("field: {}\n", clean(field));
        }
        if let Some(next) = &self.next {
            text += &format!("next:  {}\n", clean(next));
        }
        text
    }

    pub fn report(self) -> ExitCode {
        if !self.what.is_empty() {
            eprint!("{}", self.text());
        }
        ExitCode::from(self.code)
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self { code: 4, what: error.message, field: Some(error.field), next: None }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = exit_code(&error);
        let next = advice(&error);
        let field = error.detail().and_then(|d| d.field.clone());
        let what = match &error {
            // The field has a line of its own.
            ClientError::Api { operation, detail, .. } => format!("{operation}: {}", detail.message),
            other => other.to_string(),
        };
        Self { code, what, field, next }
    }
}

fn exit_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Api { detail, .. } => match detail.code {
            ErrorCode::NotFound => 3,
            ErrorCode::Unavailable => 5,
            ErrorCode::Internal | ErrorCode::NoRoom | ErrorCode::StorageFull => 1,
            ErrorCode::InvalidField
            | ErrorCode::MalformedBody
            | ErrorCode::Unauthenticated
            | ErrorCode::Forbidden
            | ErrorCode::MethodNotAllowed
            | ErrorCode::Conflict
            | ErrorCode::TooLarge
            | ErrorCode::UnsupportedMediaType => 4,
        },
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => 5,
        ClientError::Protocol { .. } => 1,
        ClientError::NoSuch { .. } => 3,
        ClientError::Ambiguous { .. } => 4,
        ClientError::File { .. } | ClientError::Setup { .. } => 2,
    }
}

/// What to do next, where the controller's own message does not say it.
fn advice(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Api { detail, .. } => match detail.code {
            ErrorCode::Unauthenticated => {
                Some("check AMPHI_TOKEN against the controller's admin-token".to_owned())
            }
            ErrorCode::StorageFull => {
                Some("delete images, or give the controller's disk more room".to_owned())
            }
            ErrorCode::Internal => Some("the controller's log says more".to_owned()),
            _ => None,
        },
        ClientError::Unreachable { .. } => {
            Some("check AMPHI_URL and that the controller runs; in the lab: make up".to_owned())
        }
        ClientError::Timeout { .. } => {
            Some("the order stands: look again with `show`, or wait longer with --timeout".to_owned())
        }
        ClientError::NoSuch { noun, .. } => Some(format!("amphi {} list", noun.replace(' ', "-"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::error::ErrorDetail;

    fn api(code: ErrorCode) -> ClientError {
        ClientError::Api {
            operation: "create instance web".to_owned(),
            status: code.status(),
            detail: ErrorDetail {
                code,
                message: "10.1.1.1 is outside 10.1.0.0/24\u{1b}[2J".to_owned(),
                field: Some("networks[0].address".to_owned()),
            },
        }
    }

    #[test]
    fn exit_codes_by_kind() {
        let table = [
            (api(ErrorCode::InvalidField), 4),
            (api(ErrorCode::Conflict), 4),
            (api(ErrorCode::NotFound), 3),
            (api(ErrorCode::NoRoom), 1),
            (api(ErrorCode::Internal), 1),
            (api(ErrorCode::StorageFull), 1),
            (api(ErrorCode::Unavailable), 5),
            (ClientError::NoSuch { noun: "host", name: "h9".into() }, 3),
            (ClientError::Setup { what: String::new() }, 2),
            (ClientError::Timeout { operation: String::new(), after: Default::default(), saw: None }, 5),
        ];
        for (error, code) in table {
            let shown = format!("{error:?}");
            assert_eq!(Failure::from(error).code, code, "{shown}");
        }
    }

    #[test]
    fn field_on_its_own_line_and_no_escapes() {
        let text = Failure::from(api(ErrorCode::InvalidField)).text();
        assert_eq!(
            text,
            "error: create instance web: 10.1.1.1 is outside 10.1.0.0/24?[2J\nfield: networks[0].address\n"
        );
        let text = Failure::from(ClientError::NoSuch { noun: "security group", name: "x".into() }).text();
        assert_eq!(text, "error: no security group 'x'\nnext:  amphi security-group list\n");
    }
}
