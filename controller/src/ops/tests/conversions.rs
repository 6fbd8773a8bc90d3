//! Conversions of images: who makes them, how they end, and what they hold back meanwhile.

use super::*;
use amphi_api::conversion::{
    Conversion, ConversionInit, ConversionProgress, ConversionReport, ConversionState, ConvertCreate,
    ConvertTo,
};
use amphi_api::instance::Fault;
use amphi_api::wire::{ConversionStatus, ExportSource};

async fn order(cloud: &Cloud, of: ImageId, to: ConvertTo) -> Result<Conversion, OpsError> {
    cloud.ops.convert_image(P, of, &ConvertCreate { to, name: None }).await
}

fn report() -> ConversionReport {
    let init = ConversionInit {
        kind: "sysvinit".into(),
        argv: vec!["/sbin/init".into()],
        stop_signal: "SIGPWR".into(),
    };
    ConversionReport {
        system: "Some Linux".into(),
        init,
        entries: 9,
        bytes: 99,
        ..ConversionReport::default()
    }
}

#[tokio::test]
async fn a_host_makes_it_and_what_was_found_stays() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let disk = cloud.image("disk", ImageFormat::Qcow2).await;
    assert!(order(&cloud, disk, ConvertTo::Disk).await.is_err(), "it is one");
    let begun = order(&cloud, disk, ConvertTo::Container).await.unwrap();
    assert_eq!((begun.state, begun.image.name.as_str()), (ConversionState::Running, "disk-container"));
    let (host, other) = if begun.host == h1 { (h1, h2) } else { (h2, h1) };
    let desired = cloud.ops.desired(host);
    assert!(
        matches!(&desired.exports[0].source, ExportSource::Conversion { of, to: ConvertTo::Container } if of.id == disk),
        "{desired:?}"
    );
    assert!(cloud.ops.desired(other).exports.is_empty());
    assert!(
        cloud.ops.blob_allowed(host, &"ab".repeat(32)) && !cloud.ops.blob_allowed(other, &"ab".repeat(32))
    );
    let kept = cloud.ops.delete_image(P, disk).await.unwrap_err();
    assert!(kept.to_string().contains("is being made of it"), "{kept}");

    let told = async |blob: bool, fault: Option<&str>, status: Option<ConversionStatus>| {
        let mut all = cloud.obedient(host);
        let one = &mut all.exports[0];
        one.blob = one.blob.take().filter(|_| blob);
        one.fault =
            fault.map(|code| Fault { code: code.into(), message: "so".into(), since: Timestamp::now() });
        one.conversion = status;
        cloud.ops.status(host, all).await.unwrap();
        cloud.ops.conversion(P, begun.image.id).unwrap()
    };
    // What may pass does not end it.
    let seen = told(false, Some("conversion_failed"), None).await;
    assert_eq!(
        (seen.state, seen.fault.map(|f| f.code)),
        (ConversionState::Running, Some("conversion_failed".into()))
    );
    let progress = ConversionProgress { entries: 4, bytes: 40 };
    let seen = told(false, None, Some(ConversionStatus { progress, report: None })).await;
    assert_eq!((seen.state, seen.progress, seen.fault), (ConversionState::Running, progress, None));
    let progress = ConversionProgress { entries: 9, bytes: 99 };
    let seen = told(true, None, Some(ConversionStatus { progress, report: Some(report()) })).await;
    assert_eq!((seen.state, seen.progress, seen.report), (ConversionState::Done, progress, Some(report())));
    let set = seen.set.unwrap();
    set.check().unwrap();
    assert_eq!(set.members[0].image, "disk-container");
    assert!(cloud.ops.desired(host).exports.is_empty());
    cloud.ops.delete_image(P, disk).await.unwrap();
    assert_eq!(cloud.ops.conversion(P, begun.image.id).unwrap().of_name, "disk");
}

#[tokio::test]
async fn what_cannot_be_ends_and_what_nobody_wants_goes() {
    let (cloud, ..) = Cloud::furnished().await;
    let disk = cloud.image("disk", ImageFormat::Raw).await;
    let begun = order(&cloud, disk, ConvertTo::Container).await.unwrap();
    let mut all = cloud.obedient(begun.host);
    all.exports[0].blob = None;
    let fault = Fault { code: "not_convertible".into(), message: "no root".into(), since: Timestamp::now() };
    all.exports[0].fault = Some(fault);
    cloud.ops.status(begun.host, all).await.unwrap();
    let seen = cloud.ops.conversion(P, begun.image.id).unwrap();
    assert_eq!((seen.state, seen.fault.unwrap().message.as_str()), (ConversionState::Failed, "no root"));
    assert!(cloud.ops.desired(begun.host).exports.is_empty(), "no other try would change it");

    let begun = order(&cloud, disk, ConvertTo::Container).await.unwrap();
    assert_eq!(cloud.ops.desired(begun.host).exports.len(), 1);
    cloud.ops.delete_image(P, begun.image.id).await.unwrap();
    assert!(cloud.ops.desired(begun.host).exports.is_empty());
    cloud.ops.delete_image(P, disk).await.unwrap();
    assert!(cloud.ops.conversion(P, disk).is_err());
}

#[tokio::test]
async fn a_host_that_cannot_is_not_asked() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let image = cloud.image("web", ImageFormat::DockerArchive).await;
    let older = |name: &str| amphi_api::host::HostSpec { wire: 1, ..spec(name) };
    let bare = |name: &str| amphi_api::host::HostSpec { guest_kit: false, ..spec(name) };
    cloud.ops.hello(h1, &older("h1")).await.unwrap();
    assert_eq!(order(&cloud, image, ConvertTo::Disk).await.unwrap().host, h2);
    cloud.ops.hello(h2, &bare("h2")).await.unwrap();
    let none = order(&cloud, image, ConvertTo::Disk).await.unwrap_err();
    assert!(none.to_string().contains("no host can convert"), "{none}");
}
