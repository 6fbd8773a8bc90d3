//! What LVM reports about the volume group, as values. Parsing only; runs nothing.

use serde::Deserialize;
use uuid::Uuid;

use super::placement::{ExtentRange, Extents, Taken};
use super::shared::SHARED_TAG;
use super::{Filesystem, VolumeKind, recycle};

/// On every LV of ours; an LV without it is never touched.
pub const TAG: &str = "amphi";
/// On an LV whose first bytes are not complete yet; taken off as the last step of its creation.
pub const MAKING_TAG: &str = "amphi.making";
pub const XFS_TAG: &str = "amphi.fs=xfs";
/// Followed by the volume that a snapshot was taken of.
pub const OF_TAG: &str = "amphi.of=";

/// One volume group, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupReport {
    /// LVM's own id of the group.
    pub uuid: String,
    /// It is marked as one that other hosts see too.
    pub shared: bool,
    pub size_bytes: u64,
    pub free_bytes: u64,
    pub extent_bytes: u64,
    pub pvs: Vec<PvReport>,
    pub lvs: Vec<LvReport>,
    /// Every allocated run of extents, ours or not.
    pub taken: Vec<Taken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PvReport {
    pub name: String,
    /// Where the first extent starts on the device, in bytes.
    pub start_bytes: u64,
    pub extents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LvReport {
    pub name: String,
    pub size_bytes: u64,
    pub tags: Vec<String>,
    /// Meaningful with device-mapper only.
    pub active: bool,
    /// Name of the LV that a temporary device-mapper snapshot belongs to.
    pub origin: Option<String>,
    /// In logical order.
    pub ranges: Vec<ExtentRange>,
}

impl LvReport {
    /// The volume or snapshot that this LV is, if it is one of ours.
    pub fn identity(&self) -> Option<(Uuid, VolumeKind)> {
        if !self.has(TAG) {
            return None;
        }
        if let Some(id) = self.name.strip_prefix("vol-") {
            return Some((id.parse().ok()?, VolumeKind::Volume));
        }
        let id = self.name.strip_prefix("snap-")?.parse().ok()?;
        let of = self.tags.iter().find_map(|tag| tag.strip_prefix(OF_TAG))?.parse().ok()?;
        Some((id, VolumeKind::Snapshot { of }))
    }

    pub fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }

    pub fn is_making(&self) -> bool {
        self.has(MAKING_TAG)
    }

    pub fn fs(&self) -> Option<Filesystem> {
        self.has(XFS_TAG).then_some(Filesystem::Xfs)
    }

    pub fn trashed_at(&self) -> Option<i64> {
        recycle::trashed_at(self.tags.iter().map(String::as_str))
    }

    /// The LV's extents when they are one piece of one device.
    pub fn contiguous(&self) -> Option<ExtentRange> {
        let mut whole = self.ranges.first()?.clone();
        for range in &self.ranges[1..] {
            if range.pv != whole.pv || range.start != whole.end() {
                return None;
            }
            whole.count += range.count;
        }
        Some(whole)
    }
}

impl GroupReport {
    pub fn extents(&self) -> Vec<Extents> {
        self.pvs.iter().map(|pv| Extents { pv: pv.name.clone(), count: pv.extents }).collect()
    }

    pub fn lv(&self, name: &str) -> Option<&LvReport> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The LV of volume or snapshot `id`.
    pub fn of(&self, id: Uuid) -> Option<(&LvReport, VolumeKind)> {
        self.lvs.iter().find_map(|lv| lv.identity().filter(|(own, _)| *own == id).map(|(_, kind)| (lv, kind)))
    }

    /// Byte offset of an extent on its physical volume.
    pub fn offset(&self, range: &ExtentRange) -> Option<u64> {
        let pv = self.pvs.iter().find(|pv| pv.name == range.pv)?;
        Some(pv.start_bytes + range.start * self.extent_bytes)
    }
}

#[derive(Deserialize)]
struct Full {
    report: Vec<Tables>,
}

#[derive(Deserialize)]
struct Tables {
    vg: Vec<VgRow>,
    pv: Vec<PvRow>,
    lv: Vec<LvRow>,
    pvseg: Vec<PvSegRow>,
    seg: Vec<SegRow>,
}

#[derive(Deserialize)]
struct VgRow {
    vg_name: String,
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    #[serde(default)]
    vg_uuid: String,
    #[serde(default)]
    vg_tags: String,
}

#[derive(Deserialize)]
struct PvRow {
    pv_uuid: String,
    pv_name: String,
    pe_start: String,
    pv_pe_count: String,
}

#[derive(Deserialize)]
struct LvRow {
    lv_uuid: String,
    lv_name: String,
    lv_size: String,
    lv_tags: String,
    lv_active: String,
    origin: String,
}

#[derive(Deserialize)]
struct PvSegRow {
    pvseg_start: String,
    pvseg_size: String,
    pv_uuid: String,
    lv_uuid: String,
}

#[derive(Deserialize)]
struct SegRow {
    lv_uuid: String,
    seg_start_pe: String,
    seg_pe_ranges: String,
}

fn number(text: &str, what: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{what} is no number: {text:?}"))
}

/// `PV:first-last` as in seg_pe_ranges.
fn range(text: &str) -> Option<ExtentRange> {
    let (pv, extents) = text.rsplit_once(':')?;
    let (first, last) = extents.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some(ExtentRange { pv: pv.to_owned(), start: first, count: last.checked_sub(first)? + 1 })
}

/// Parses `lvm fullreport --reportformat json` with the fields that `LvmCommand::Report` asks for.
pub fn parse(json: &[u8], group: &str) -> Result<GroupReport, String> {
    let full: Full = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let tables = full
        .report
        .into_iter()
        .find(|tables| tables.vg.iter().any(|vg| vg.vg_name == group))
        .ok_or_else(|| format!("volume group {group} is not in the report"))?;
    let vg = &tables.vg[0];

    let mut lvs = Vec::with_capacity(tables.lv.len());
    for row in &tables.lv {
        let mut segments: Vec<(u64, &str)> = tables
            .seg
            .iter()
            .filter(|seg| seg.lv_uuid == row.lv_uuid)
            .map(|seg| Ok((number(&seg.seg_start_pe, "seg_start_pe")?, seg.seg_pe_ranges.as_str())))
            .collect::<Result<_, String>>()?;
        segments.sort_by_key(|(start, _)| *start);
        let mut tags: Vec<String> =
            row.lv_tags.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
        tags.sort();
        lvs.push(LvReport {
            name: row.lv_name.trim_matches(['[', ']']).to_owned(),
            size_bytes: number(&row.lv_size, "lv_size")?,
            tags,
            active: row.lv_active.starts_with("active"),
            origin: Some(row.origin.trim_matches(['[', ']']).to_owned()).filter(|origin| !origin.is_empty()),
            ranges: segments
                .iter()
                .flat_map(|(_, ranges)| ranges.split_whitespace())
                .filter_map(range)
                .collect(),
        });
    }

    let mut taken = Vec::new();
    for row in tables.pvseg.iter().filter(|row| !row.lv_uuid.is_empty()) {
        let Some(pv) = tables.pv.iter().find(|pv| pv.pv_uuid == row.pv_uuid) else {
            return Err(format!("physical volume {} is not in the report", row.pv_uuid));
        };
        let grows = tables.lv.iter().any(|lv| lv.lv_uuid == row.lv_uuid && lv.lv_name.starts_with("vol-"));
        taken.push(Taken {
            range: ExtentRange {
                pv: pv.pv_name.clone(),
                start: number(&row.pvseg_start, "pvseg_start")?,
                count: number(&row.pvseg_size, "pvseg_size")?,
            },
            grows,
        });
    }

    let pvs = tables
        .pv
        .iter()
        .map(|pv| {
            Ok(PvReport {
                name: pv.pv_name.clone(),
                start_bytes: number(&pv.pe_start, "pe_start")?,
                extents: number(&pv.pv_pe_count, "pv_pe_count")?,
            })
        })
        .collect::<Result<_, String>>()?;
    Ok(GroupReport {
        uuid: vg.vg_uuid.clone(),
        shared: vg.vg_tags.split(',').any(|tag| tag == SHARED_TAG),
        size_bytes: number(&vg.vg_size, "vg_size")?,
        free_bytes: number(&vg.vg_free, "vg_free")?,
        extent_bytes: number(&vg.vg_extent_size, "vg_extent_size")?.max(1),
        pvs,
        lvs,
        taken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"report":[{
      "vg":[{"vg_name":"amphi","vg_size":"4290772992","vg_free":"3133145088","vg_extent_size":"4194304"}],
      "pv":[{"pv_uuid":"P","pv_name":"/dev/loop0","pe_start":"1048576","pv_pe_count":"1023"}],
      "lv":[{"lv_uuid":"A","lv_name":"vol-00000000-0000-4000-8000-000000000001","lv_size":"1115684864",
             "lv_tags":"amphi.fs=xfs,amphi","lv_active":"unknown","origin":""},
            {"lv_uuid":"B","lv_name":"snap-00000000-0000-4000-8000-000000000002","lv_size":"41943040",
             "lv_tags":"amphi,amphi.making,amphi.of=00000000-0000-4000-8000-000000000001,amphi.trash=9",
             "lv_active":"active","origin":""},
            {"lv_uuid":"C","lv_name":"vol-00000000-0000-4000-8000-000000000003","lv_size":"4194304",
             "lv_tags":"","lv_active":"","origin":""}],
      "pvseg":[{"pvseg_start":"0","pvseg_size":"300","pv_uuid":"P","lv_uuid":""},
               {"pvseg_start":"300","pvseg_size":"266","pv_uuid":"P","lv_uuid":"A"},
               {"pvseg_start":"566","pvseg_size":"10","pv_uuid":"P","lv_uuid":"B"}],
      "seg":[{"lv_uuid":"B","seg_start_pe":"0","seg_pe_ranges":"/dev/loop0:566-575"},
             {"lv_uuid":"A","seg_start_pe":"256","seg_pe_ranges":"/dev/loop0:556-565"},
             {"lv_uuid":"A","seg_start_pe":"0","seg_pe_ranges":"/dev/loop0:300-555"}]}]}"#;

    #[test]
    fn a_report_becomes_values() {
        let report = parse(REPORT.as_bytes(), "amphi").expect("parses");
        let id = |n: u128| Uuid::from_u128(0x00000000_0000_4000_8000_000000000000 + n);
        let (volume, kind) = report.of(id(1)).expect("volume");
        assert_eq!(kind, VolumeKind::Volume);
        assert_eq!(volume.fs(), Some(Filesystem::Xfs));
        let whole = volume.contiguous().expect("one piece");
        assert_eq!((whole.start, whole.count), (300, 266));
        assert_eq!(report.offset(&whole), Some(1048576 + 300 * 4194304));
        let (snapshot, kind) = report.of(id(2)).expect("snapshot");
        assert_eq!(kind, VolumeKind::Snapshot { of: id(1) });
        assert!(snapshot.is_making() && snapshot.active);
        assert_eq!(snapshot.trashed_at(), Some(9));
        assert!(report.of(id(3)).is_none(), "an LV without our tag is not ours");
        assert_eq!(report.taken.iter().map(|t| t.grows).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn scattered_extents_are_not_contiguous() {
        let mut report = parse(REPORT.as_bytes(), "amphi").expect("parses");
        report.lvs[0].ranges.swap(0, 1);
        assert_eq!(report.lvs[0].contiguous(), None);
    }

    #[test]
    fn a_missing_group_or_odd_number_is_an_error() {
        assert!(parse(REPORT.as_bytes(), "other").expect_err("missing").contains("other"));
        let odd = REPORT.replace("4290772992", "4g");
        assert!(parse(odd.as_bytes(), "amphi").expect_err("odd").contains("vg_size"));
        assert!(parse(b"no json", "amphi").is_err());
    }
}
