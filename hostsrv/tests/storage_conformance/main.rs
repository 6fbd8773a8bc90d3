//! What every activation must do, on real LVM: the same cases run here with loop windows and, when started
//! by scripts/uml-lane.sh inside User-Mode Linux, with device-mapper.
//!
//! Needs root and loop devices, and fails without them.

#[path = "../common/mod.rs"]
mod common;

mod copies;
mod faults;
mod rig;
mod shared;
mod speed;
mod volumes;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => { $(
        #[test]
        fn $name() {
            rig::on_rig(stringify!($name), |rig| Box::pin($module::$name(rig)));
        }
    )* };
}

cases!(
    volumes::a_volume_has_a_hard_limit_and_its_neighbour_is_unharmed,
    volumes::a_mounted_volume_grows_online_and_never_shrinks,
    volumes::a_file_system_has_a_least_size_and_grows_by_every_extent,
    volumes::bytes_stay_when_the_body_changes,
    volumes::the_bin_keeps_restores_and_purges,
    volumes::everything_twice_is_once,
    volumes::a_fresh_driver_finds_everything_again,
    volumes::what_is_on_its_way_is_known_to_others,
    volumes::many_at_once_do_not_meet,
    volumes::what_somebody_else_changes_is_seen,
    copies::a_snapshot_is_one_point_in_time,
    copies::a_guest_is_paused_and_always_resumed,
    copies::a_copy_grows_with_its_volume_s_size,
    copies::a_volume_begins_with_a_disk,
    copies::bytes_go_out_as_a_disk_file,
    faults::a_busy_volume_is_not_detached_and_its_holder_named,
    faults::a_full_group_says_so_and_nothing_is_half_made,
    faults::a_crash_before_the_format_is_healed,
    faults::a_crash_during_a_copy_is_healed,
    faults::a_file_system_left_frozen_is_thawed,
    faults::a_damaged_file_system_is_left_to_a_person,
    faults::what_is_not_ours_is_not_touched,
    shared::two_hosts_share_a_group_and_never_a_volume,
    speed::a_volume_of_a_gibibyte_is_there_at_once,
);
