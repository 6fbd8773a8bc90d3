//! Services and endpoints.

use super::names::{self, LONG_NAME_MAX};
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError, View};
use jiff::Timestamp;

/// What a new service is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct ServiceChange {
    pub kind: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub enabled: Option<bool>,
    pub extra: Extra,
}

/// What a new endpoint is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct EndpointChange {
    pub service: Option<ServiceId>,
    pub interface: Option<Interface>,
    pub url: Option<String>,
    /// One that does not exist is made. `Some(None)`: none any more.
    pub region: Option<Option<String>>,
    pub name: Option<String>,
    pub enabled: Option<bool>,
    pub extra: Extra,
}

impl Ops {
    pub async fn create_service(&self, change: &ServiceChange) -> Result<ServiceRecord, OpsError> {
        let kind = change.kind.clone().ok_or_else(|| OpsError::field("type", "is a required property"))?;
        check_kind(&kind)?;
        let record = ServiceRecord {
            id: ServiceId::new(),
            kind,
            name: change.name.clone(),
            description: change.description.clone(),
            enabled: change.enabled.unwrap_or(true),
            extra: change.extra.clone(),
            created_at: Timestamp::now(),
        };
        self.transact(|_| {
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_service(
        &self,
        id: ServiceId,
        change: &ServiceChange,
    ) -> Result<ServiceRecord, OpsError> {
        change.kind.as_deref().map_or(Ok(()), check_kind)?;
        self.transact(|view| {
            let row =
                view.identity.services.get(id).ok_or_else(|| OpsError::not_found::<ServiceRecord>(id))?;
            let mut record = (*row.record).clone();
            if let Some(kind) = &change.kind {
                record.kind = kind.clone();
            }
            record.name = change.name.clone().or(record.name);
            record.description = change.description.clone().or(record.description);
            record.enabled = change.enabled.unwrap_or(record.enabled);
            names::overlay(&mut record.extra, &change.extra);
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    /// Its endpoints go with it.
    pub async fn delete_service(&self, id: ServiceId) -> Result<(), OpsError> {
        let missing = || OpsError::not_found::<ServiceRecord>(id);
        self.world().read().identity.services.get(id).ok_or_else(missing)?;
        self.clear(|view| view.identity.hanging_on_service(id)).await?;
        self.transact(|view| {
            let row = view.identity.services.get(id).ok_or_else(missing)?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn create_endpoint(&self, change: &EndpointChange) -> Result<EndpointRecord, OpsError> {
        let missing = |what: &str| OpsError::field(what, "is a required property");
        let record = EndpointRecord {
            id: EndpointId::new(),
            service: change.service.ok_or_else(|| missing("service_id"))?,
            interface: change.interface.ok_or_else(|| missing("interface"))?,
            url: change.url.clone().ok_or_else(|| missing("url"))?,
            region: change.region.clone().flatten(),
            name: change.name.clone(),
            enabled: change.enabled.unwrap_or(true),
            extra: change.extra.clone(),
            created_at: Timestamp::now(),
        };
        check_url(&record.url)?;
        self.transact(|view| {
            let mut draft = Draft::default();
            furnish(view, &mut draft, &record)?;
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_endpoint(
        &self,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<EndpointRecord, OpsError> {
        change.url.as_deref().map_or(Ok(()), check_url)?;
        self.transact(|view| {
            let row =
                view.identity.endpoints.get(id).ok_or_else(|| OpsError::not_found::<EndpointRecord>(id))?;
            let mut record = (*row.record).clone();
            record.service = change.service.unwrap_or(record.service);
            record.interface = change.interface.unwrap_or(record.interface);
            if let Some(url) = &change.url {
                record.url = url.clone();
            }
            if let Some(region) = &change.region {
                record.region = region.clone();
            }
            record.name = change.name.clone().or(record.name);
            record.enabled = change.enabled.unwrap_or(record.enabled);
            names::overlay(&mut record.extra, &change.extra);
            let mut draft = Draft::default();
            furnish(view, &mut draft, &record)?;
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    pub async fn delete_endpoint(&self, id: EndpointId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row =
                view.identity.endpoints.get(id).ok_or_else(|| OpsError::not_found::<EndpointRecord>(id))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}

/// An endpoint's service must exist; its region is made if it does not.
fn furnish(view: &View, draft: &mut Draft, endpoint: &EndpointRecord) -> Result<(), OpsError> {
    let service = view.identity.services.get(endpoint.service);
    draft.guard(service.ok_or_else(|| OpsError::field("service_id", "no such service"))?);
    if let Some(name) = &endpoint.region {
        super::regions::check_name(name)?;
        match view.identity.regions.get(RegionKey::of(name)) {
            Some(region) => draft.guard(region),
            None => draft.create(&RegionRecord {
                name: name.clone(),
                description: String::new(),
                parent: None,
                extra: Extra::new(),
            }),
        }
    }
    Ok(())
}

fn check_kind(kind: &str) -> Result<(), OpsError> {
    names::check(kind, LONG_NAME_MAX).map_err(|_| OpsError::field("type", "must have 1 to 255 characters"))
}

/// Clients are sent there: nothing but web addresses, with the known words to be filled in.
fn check_url(url: &str) -> Result<(), OpsError> {
    let known = ["http://", "https://", "$(base)s"].iter().any(|start| url.starts_with(start));
    if !known || url.len() > 2048 || url.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(OpsError::field("url", "must be an http or https URL"));
    }
    Ok(())
}
