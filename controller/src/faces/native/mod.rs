//! The native face: `/v1`, JSON over HTTP, one file per resource. It translates and decides nothing: what may be done
//! is said in `ops`. Every answer that is no success carries an `ErrorBody`, whatever went wrong.

mod answers;
mod blobs;
mod debug;
mod endpoints;
mod events;
mod exchanges;
mod extract;
mod failovers;
mod files;
mod groups;
mod guard;
mod hosts;
mod images;
mod instances;
mod networks;
mod placements;
mod prepulls;
mod regions;
mod replicas;
mod repositories;
mod rollouts;
mod scaling_groups;
mod shape;
mod snapshots;
mod streams;
#[cfg(test)]
mod tests;
mod tools;
mod use_now;
mod volumes;
mod words;

use crate::ops::Ops;
use crate::regions::Regions;
use amphi_api::ErrorCode;
use answers::Failure;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Shared by the handlers.
#[derive(Clone)]
pub struct Native {
    pub ops: Arc<Ops>,
    pub regions: Arc<Regions>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Amphi",
        description = "Instances whose body is a VM or a set of containers, exchangeable for the other kind. \
            Every route wants `Authorization: Bearer TOKEN` (the controller's own token) or `X-Auth-Token: TOKEN` \
            (a user's, scoped to a project, from `/identity/v3/auth/tokens`), but for `/healthz` and this description. \
            A reader of the project may look, a member may change, an administrator may do both with hosts too. \
            Work of hosts is asynchronous: 202 says that the order is recorded; poll the view for its state."
    ),
    components(schemas(amphi_api::image::BlobRole)),
    security(("token" = []), ("user" = [])),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
        let user = ApiKey::Header(ApiKeyValue::new("X-Auth-Token"));
        components.add_security_scheme("user", SecurityScheme::ApiKey(user));
    }
}

fn routes() -> OpenApiRouter<Native> {
    OpenApiRouter::new()
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::show, hosts::change, hosts::delete))
        .routes(routes!(hosts::evacuate))
        .routes(routes!(hosts::begin_maintenance, hosts::end_maintenance))
        .routes(routes!(hosts::create_join_token))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::show, networks::delete))
        .routes(routes!(networks::list_ports))
        .routes(routes!(networks::show_port))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::show, groups::delete))
        .routes(routes!(groups::add_rule))
        .routes(routes!(groups::remove_rule))
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::show, images::edit, images::delete))
        .routes(routes!(images::layers))
        .routes(routes!(images::market))
        .routes(routes!(images::usage))
        .routes(routes!(images::limit))
        .routes(routes!(prepulls::show, prepulls::order, prepulls::cancel))
        .routes(routes!(prepulls::keep, prepulls::release))
        .routes(routes!(images::convert))
        .routes(routes!(images::conversion))
        .routes(routes!(repositories::list))
        .routes(routes!(repositories::show, repositories::change, repositories::delete))
        .routes(routes!(repositories::tags))
        .routes(routes!(repositories::untag))
        .routes(routes!(images::put_blob, images::blob_offset, images::append_blob))
        .routes(routes!(blobs::known))
        .routes(routes!(blobs::read, blobs::offset, blobs::append))
        .routes(routes!(regions::list, regions::create))
        .routes(routes!(regions::show, regions::change, regions::delete))
        .routes(routes!(regions::replications, regions::replicate))
        .routes(routes!(regions::replication, regions::forget))
        .routes(routes!(regions::policies, regions::create_policy))
        .routes(routes!(regions::delete_policy))
        .routes(routes!(replicas::list))
        .routes(routes!(replicas::put, replicas::delete))
        .routes(routes!(replicas::read, replicas::append))
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(instances::show, instances::delete))
        .routes(routes!(instances::start))
        .routes(routes!(instances::stop))
        .routes(routes!(instances::restart))
        .routes(routes!(instances::resize))
        .routes(routes!(instances::console_log))
        .routes(routes!(rollouts::show, rollouts::update))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::undo))
        .routes(routes!(rollouts::revisions))
        .routes(routes!(rollouts::revision))
        .routes(routes!(rollouts::restart_member))
        .routes(routes!(streams::exec))
        .routes(routes!(streams::console))
        .routes(routes!(streams::screen))
        .routes(routes!(streams::logs))
        .routes(routes!(files::files))
        .routes(routes!(tools::tools))
        .routes(routes!(use_now::show))
        .routes(routes!(events::list))
        .routes(routes!(debug::create, debug::end))
        .routes(routes!(exchanges::list_of_instance, exchanges::create))
        .routes(routes!(exchanges::list))
        .routes(routes!(exchanges::show))
        .routes(routes!(exchanges::cancel))
        .routes(routes!(exchanges::create_move))
        .routes(routes!(placements::explain))
        .routes(routes!(placements::rebalance))
        .routes(routes!(scaling_groups::list, scaling_groups::create))
        .routes(routes!(scaling_groups::show, scaling_groups::change, scaling_groups::delete))
        .routes(routes!(scaling_groups::explain, scaling_groups::scale))
        .routes(routes!(scaling_groups::update))
        .routes(routes!(scaling_groups::order_rollout))
        .routes(routes!(scaling_groups::post_metric))
        .routes(routes!(endpoints::of_group))
        .routes(routes!(endpoints::of_instance))
        .routes(routes!(endpoints::of_label))
        .routes(routes!(failovers::list))
        .routes(routes!(failovers::show))
        .routes(routes!(failovers::change))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::delete))
        .routes(routes!(volumes::extend))
        .routes(routes!(volumes::bin))
        .routes(routes!(volumes::purge))
        .routes(routes!(volumes::restore))
        .routes(routes!(snapshots::list_of_volume, snapshots::create))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::show, snapshots::delete))
        .routes(routes!(words::check_set))
        .routes(routes!(words::whoami))
        .routes(routes!(words::version))
}

/// The API's description of itself.
pub fn openapi() -> utoipa::openapi::OpenApi {
    OpenApiRouter::with_openapi(Document::openapi()).nest("/v1", routes()).into_openapi()
}

/// All routes of the face, behind the token.
pub fn router(native: Native, token: &str) -> Router {
    let (routed, document) =
        OpenApiRouter::with_openapi(Document::openapi()).nest("/v1", routes()).split_for_parts();
    let guard = guard::Guard::new(token, native.ops.clone());
    // Rendered once: it never changes while we run.
    let document = document.to_json().unwrap_or_default();
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    routed
        .route("/v1/openapi.json", get(move || async move { (json, document) }))
        .route("/healthz", get(|| async { StatusCode::OK }))
        .fallback(|| async { Failure::new(ErrorCode::NotFound, "no such route") })
        .method_not_allowed_fallback(|| async {
            Failure::new(ErrorCode::MethodNotAllowed, "the path is there, this method is not")
        })
        .with_state(native)
        // Bodies are bounded where they are read: blobs have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(guard, guard::authenticate))
        .layer(CatchPanicLayer::custom(guard::panicked))
        .layer(axum::middleware::from_fn(guard::identify))
}
