//! `amphi security-group`: groups, and rules in their short form.

use crate::failure::Failure;
use crate::rule::{egress, ingress, short};
use crate::session::Session;
use crate::table::{age, moment, pairs, rows, word};
use amphi_api::network::{Direction, Rule, RuleSpec, SecurityGroup, SecurityGroupCreate};
use clap::{Args, Subcommand};
use jiff::Timestamp;

#[derive(Subcommand)]
pub enum Command {
    /// Groups and their rules.
    List,
    /// One group with the rules' ids.
    Show { group: String },
    /// Make a group. What no rule lets in stays out.
    Create {
        name: String,
        #[command(flatten)]
        rules: Rules,
    },
    /// Delete a group that nothing uses.
    Delete { group: String },
    /// Let more through.
    AddRule {
        group: String,
        #[command(flatten)]
        rules: Rules,
    },
    /// Take rules away, by id or in their short form (incoming; `out:tcp:80` for outgoing).
    RemoveRule {
        group: String,
        #[arg(required = true)]
        rule: Vec<String>,
    },
}

#[derive(Args)]
pub struct Rules {
    /// Let in: `icmp`, `tcp:80`, `udp:1000-2000`, `tcp:22@10.0.0.0/8`, `any`; may be repeated.
    #[arg(long, value_name = "RULE", value_parser = ingress)]
    allow: Vec<RuleSpec>,
    /// Let out, and from then on nothing else; same form.
    #[arg(long, value_name = "RULE", value_parser = egress)]
    allow_out: Vec<RuleSpec>,
}

impl Rules {
    fn all(self) -> Vec<RuleSpec> {
        self.allow.into_iter().chain(self.allow_out).collect()
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List => {
                let groups = session.client()?.security_groups().await?;
                session.list("security_groups", &groups, |g| list(g, Timestamp::now()))
            }
            Self::Show { group } => {
                session.show(&session.client()?.find_security_group(&group).await?, detail)
            }
            Self::Create { name, rules } => {
                let request = SecurityGroupCreate { name, rules: rules.all() };
                request.check()?;
                session.show(&session.client()?.create_security_group(&request).await?, detail)
            }
            Self::Delete { group } => {
                let client = session.client()?;
                let group = client.find_security_group(&group).await?;
                client.delete_security_group(group.id).await?;
                session.note(&format!("deleted security group {}", group.name))
            }
            Self::AddRule { group, rules } => {
                let rules = rules.all();
                if rules.is_empty() {
                    return Err(Failure::new(2, "no rule: give --allow or --allow-out"));
                }
                let client = session.client()?;
                let mut group = client.find_security_group(&group).await?;
                for rule in &rules {
                    group = client.add_rule(group.id, rule).await?;
                }
                session.show(&group, detail)
            }
            Self::RemoveRule { group, rule } => {
                let client = session.client()?;
                let group = client.find_security_group(&group).await?;
                // All are looked up before the first goes.
                let rules = rule.iter().map(|r| find(&group, r)).collect::<Result<Vec<_>, _>>()?;
                for rule in rules {
                    client.remove_rule(group.id, rule.id).await?;
                }
                session.show(&client.security_group(group.id).await?, detail)
            }
        }
    }
}

/// The rule that the text means: by id, else by its short form.
fn find<'a>(group: &'a SecurityGroup, text: &str) -> Result<&'a Rule, Failure> {
    let by_form = |rule: &Rule| signed(&rule.spec) == text;
    let found = group.rules.iter().find(|r| r.id.to_string() == text || by_form(r));
    found.ok_or_else(|| {
        Failure::new(3, format!("{} has no rule '{text}'", group.name))
            .next(format!("amphi security-group show {}", group.name))
    })
}

/// The short form, with `out:` in front of what goes out.
fn signed(rule: &RuleSpec) -> String {
    match rule.direction {
        Direction::Ingress => short(rule),
        Direction::Egress => format!("out:{}", short(rule)),
    }
}

fn list(groups: &[SecurityGroup], now: Timestamp) -> String {
    rows(
        &["NAME", "RULES", "AGE", "ID"],
        groups.iter().map(|g| {
            let rules: Vec<_> = g.rules.iter().map(|r| signed(&r.spec)).collect();
            let rules = if rules.is_empty() { "-".to_owned() } else { rules.join(" ") };
            vec![g.name.clone(), rules, age(g.created_at, now), g.id.to_string()]
        }),
    )
}

fn detail(group: &SecurityGroup) -> String {
    let head = pairs(&[
        ("Name", group.name.clone()),
        ("Id", group.id.to_string()),
        ("Created", moment(group.created_at, Timestamp::now())),
    ]);
    let rules = group.rules.iter().map(|r| vec![word(r.spec.direction), short(&r.spec), r.id.to_string()]);
    format!("{head}\n{}", rows(&["DIRECTION", "RULE", "ID"], rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_found_by_id_and_form() {
        let id = |n: u32| format!("00000000-0000-7000-8000-{n:012}");
        let group: SecurityGroup = serde_json::from_value(json!({
            "id": id(1), "project": id(2), "name": "web", "created_at": "2026-01-02T03:04:05Z",
            "rules": [{"id": id(3), "protocol": "tcp", "port_min": 80, "port_max": 80},
                      {"id": id(4), "direction": "egress", "protocol": "any", "remote": "10.0.0.0/8"}]}))
        .unwrap();
        assert_eq!(find(&group, "tcp:80").unwrap().id.to_string(), id(3));
        assert_eq!(find(&group, "out:any@10.0.0.0/8").unwrap().id.to_string(), id(4));
        assert_eq!(find(&group, &id(4)).unwrap().id.to_string(), id(4));
        assert_eq!(find(&group, "tcp:81").unwrap_err().code, 3);
        let now = "2026-01-02T03:04:15Z".parse().unwrap();
        assert_eq!(
            list(&[group], now),
            format!(
                "NAME  RULES                      AGE  ID\nweb   tcp:80 out:any@10.0.0.0/8  10s  {}\n",
                id(1)
            )
        );
    }
}
