//! What clients need to know of a lab, as shell variables: `amphi`'s two, and those that OpenStack's clients read.

/// The lines of `target/lab/env`. Nothing in them needs quoting: an address, and two secrets of hexadecimal digits.
pub fn environment(url: &str, token: &str, password: &str) -> String {
    let auth = format!("{url}/identity/v3");
    let variables = [
        ("AMPHI_URL", url),
        ("AMPHI_TOKEN", token),
        ("OS_AUTH_URL", &auth),
        ("OS_USERNAME", "admin"),
        ("OS_PASSWORD", password),
        ("OS_PROJECT_NAME", "admin"),
        ("OS_USER_DOMAIN_NAME", "Default"),
        ("OS_PROJECT_DOMAIN_NAME", "Default"),
        ("OS_IDENTITY_API_VERSION", "3"),
        ("OS_REGION_NAME", "RegionOne"),
    ];
    variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_shell_takes_it() {
        let text = super::environment("http://127.0.0.1:8774", "abc", "def");
        let script = format!("{text}echo $AMPHI_TOKEN $OS_AUTH_URL $OS_PASSWORD $OS_IDENTITY_API_VERSION");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "abc http://127.0.0.1:8774/identity/v3 def 3"
        );
    }
}
