//! `/network/v2.0`, as neutron has it: one file per resource. Owns neutron's attributes, filters and words; refuses
//! decisions, which are made in `ops`.

mod agents;
mod discovery;
mod extensions;
mod floating_ips;
mod given;
mod groups;
mod listing;
mod networks;
mod ports;
mod qos;
mod quotas;
mod routers;
mod rules;
mod sight;
mod subnets;
mod tags;
#[cfg(test)]
mod tests;

use super::Service;
use super::routes::{Need, Routes};
use crate::model::network::{FloatingIpRecord, QosPolicyRecord, RouterRecord};
use crate::model::{NetworkRecord, PortRecord, SubnetRecord};
use listing::{list, show};

/// All routes of the service.
pub fn routes() -> Routes {
    use Need::{Admin, Member, Public, Reader};
    let routes = Routes::new(Service::Network)
        .get("/", Public, discovery::versions)
        .get("/v2.0", Public, discovery::resources)
        .get("/v2.0/", Public, discovery::resources)
        .get("/v2.0/extensions", Reader, extensions::list)
        .get("/v2.0/extensions/{alias}", Reader, extensions::show)
        .get("/v2.0/networks", Reader, list::<NetworkRecord>)
        .post("/v2.0/networks", Member, networks::create)
        .get("/v2.0/networks/{id}", Reader, show::<NetworkRecord>)
        .put("/v2.0/networks/{id}", Member, networks::update)
        .delete("/v2.0/networks/{id}", Member, networks::delete)
        .get("/v2.0/subnets", Reader, list::<SubnetRecord>)
        .post("/v2.0/subnets", Member, subnets::create)
        .get("/v2.0/subnets/{id}", Reader, show::<SubnetRecord>)
        .put("/v2.0/subnets/{id}", Member, subnets::update)
        .delete("/v2.0/subnets/{id}", Member, subnets::delete)
        .get("/v2.0/ports", Reader, list::<PortRecord>)
        .post("/v2.0/ports", Member, ports::create)
        .get("/v2.0/ports/{id}", Reader, show::<PortRecord>)
        .put("/v2.0/ports/{id}", Member, ports::update)
        .delete("/v2.0/ports/{id}", Member, ports::delete)
        .get("/v2.0/routers", Reader, list::<RouterRecord>)
        .post("/v2.0/routers", Member, routers::create)
        .get("/v2.0/routers/{id}", Reader, show::<RouterRecord>)
        .put("/v2.0/routers/{id}", Member, routers::update)
        .delete("/v2.0/routers/{id}", Member, routers::delete)
        .put("/v2.0/routers/{id}/add_router_interface", Member, routers::add_interface)
        .put("/v2.0/routers/{id}/remove_router_interface", Member, routers::remove_interface)
        .put("/v2.0/routers/{id}/add_extraroutes", Member, routers::add_routes)
        .put("/v2.0/routers/{id}/remove_extraroutes", Member, routers::remove_routes)
        .get("/v2.0/floatingips", Reader, list::<FloatingIpRecord>)
        .post("/v2.0/floatingips", Member, floating_ips::create)
        .get("/v2.0/floatingips/{id}", Reader, show::<FloatingIpRecord>)
        .put("/v2.0/floatingips/{id}", Member, floating_ips::update)
        .delete("/v2.0/floatingips/{id}", Member, floating_ips::delete)
        .get("/v2.0/security-groups", Reader, groups::list)
        .post("/v2.0/security-groups", Member, groups::create)
        .get("/v2.0/security-groups/{id}", Reader, groups::show)
        .put("/v2.0/security-groups/{id}", Member, groups::update)
        .delete("/v2.0/security-groups/{id}", Member, groups::delete)
        .get("/v2.0/security-group-rules", Reader, rules::list)
        .post("/v2.0/security-group-rules", Member, rules::create)
        .get("/v2.0/security-group-rules/{id}", Reader, rules::show)
        .delete("/v2.0/security-group-rules/{id}", Member, rules::delete)
        .get("/v2.0/qos/policies", Reader, list::<QosPolicyRecord>)
        .post("/v2.0/qos/policies", Admin, qos::create)
        .get("/v2.0/qos/policies/{id}", Reader, show::<QosPolicyRecord>)
        .put("/v2.0/qos/policies/{id}", Admin, qos::update)
        .delete("/v2.0/qos/policies/{id}", Admin, qos::delete)
        .get("/v2.0/qos/policies/{id}/{kind}", Reader, qos::list_rules)
        .post("/v2.0/qos/policies/{id}/{kind}", Admin, qos::create_rule)
        .get("/v2.0/qos/policies/{id}/{kind}/{rule}", Reader, qos::show_rule)
        .put("/v2.0/qos/policies/{id}/{kind}/{rule}", Admin, qos::update_rule)
        .delete("/v2.0/qos/policies/{id}/{kind}/{rule}", Admin, qos::delete_rule)
        .get("/v2.0/qos/rule-types", Reader, qos::rule_types)
        .get("/v2.0/qos/rule-types/{id}", Admin, qos::rule_type)
        .get("/v2.0/agents", Reader, agents::list)
        .get("/v2.0/agents/{id}", Reader, agents::show)
        .get("/v2.0/availability_zones", Reader, agents::zones)
        .get("/v2.0/network-ip-availabilities", Reader, agents::availabilities)
        .get("/v2.0/network-ip-availabilities/{id}", Reader, agents::availability)
        .get("/v2.0/service-providers", Reader, agents::providers)
        .get("/v2.0/quotas", Reader, quotas::list)
        .get("/v2.0/quotas/{id}", Reader, quotas::show)
        .get("/v2.0/quotas/{id}/default", Reader, quotas::defaults)
        .get("/v2.0/quotas/{id}/details", Reader, quotas::details)
        .put("/v2.0/quotas/{id}", Admin, quotas::update)
        .delete("/v2.0/quotas/{id}", Admin, quotas::delete);
    // Clients write some paths with the format behind them.
    tags::add(routes).rewrite(|path| path.strip_suffix(".json").map(str::to_owned))
}
