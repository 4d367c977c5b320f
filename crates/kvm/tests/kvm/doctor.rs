//! Tests that measure each numbered statement on this host, as `msrgate doctor` does.

use std::collections::BTreeSet;

use msrgate_kvm::measure::{Finding, statements};
use msrgate_kvm::{IgnoreMsrs, UnknownBits};

use msrgate_testing::host::{host, say};

/// Checks that the numbered statement about KVM holds on this host.
fn holds(number: &str) {
    if let Some(finding) = measure(number) {
        assert_eq!(finding, Finding::Holds, "{number}");
    }
}

/// Checks a statement that holds on every host, except that a host with `kvm.ignore_msrs=1` cannot show it
/// (S10.1).
fn holds_unless_ignored(number: &str) {
    match host().map(|host| host.ignore_msrs()) {
        Some(IgnoreMsrs::On) => is_not_contradicted(number),
        _ => holds(number),
    }
}

/// Checks a statement of mainline from which kernels before 6.2 differ (S9): they accept unknown bits, and
/// they check the bitmap before the flags.
fn holds_on_recent_kernels(number: &str) {
    match host().map(|host| host.unknown_bits()) {
        Some(UnknownBits::Ignored) => {
            say(&format!(
                "SKIPPED: {number}: this kernel takes unknown bits (S9)"
            ));
        }
        _ => holds(number),
    }
}

/// Checks a statement that this host may be unable to show. The host must not contradict the statement.
fn is_not_contradicted(number: &str) {
    match measure(number) {
        Some(Finding::CannotBeShown { why }) => say(&format!("SKIPPED: {number}: {why}")),
        Some(finding) => assert_eq!(finding, Finding::Holds, "{number}"),
        None => {}
    }
}

fn measure(number: &str) -> Option<Finding> {
    let host = host()?;
    let statement = statements()
        .find(|statement| statement.number() == number)
        .expect("a statement");
    Some(statement.measure(&host))
}

macro_rules! statements {
    ($($check:ident $name:ident $number:literal;)*) => {
        $(
            #[test]
            fn $name() {
                $check($number);
            }
        )*

        #[test]
        fn every_doctor_statement_has_a_test() {
            let tested = BTreeSet::from([$($number),*]);
            let stated: BTreeSet<_> = statements().map(|each| each.number()).collect();
            assert_eq!(tested, stated);
        }
    };
}

statements! {
    holds s1_1_capability_188_is_supported "S1.1";
    holds s1_2_capability_189_is_supported "S1.2";
    holds s1_3_exit_numbers_are_29_for_reads_and_30_for_writes "S1.3";
    holds_unless_ignored s1_4_exit_reason_bits_are_1_2_and_4 "S1.4";
    holds s1_5_fields_of_msr_exit_are_at_known_offsets_in_kvm_run "S1.5";
    holds s1_6_ioctl_number_of_64_bit_callers_sets_filter "S1.6";
    is_not_contradicted s1_6a_ioctl_number_of_32_bit_callers_sets_filter "S1.6a";
    holds s1_7_ranges_and_bitmap_pointers_are_at_known_offsets_in_filter_struct "S1.7";
    holds s1_8_filter_has_at_most_sixteen_ranges_of_at_most_0x3000_msrs "S1.8";
    holds_on_recent_kernels s1_9_unknown_reason_bits_are_einval "S1.9";
    holds s1_9a_enabling_capability_189_is_einval "S1.9a";
    holds s1_10_capability_184_of_early_draft_is_another_capability "S1.10";
    holds s2_1_unreadable_struct_is_efault "S2.1";
    holds_on_recent_kernels s2_2_unknown_filter_flags_are_einval "S2.2";
    holds s2_3_default_deny_without_ranges_is_einval "S2.3";
    holds s2_3a_default_allow_without_ranges_filters_nothing "S2.3a";
    holds s2_4a_empty_ranges_are_skipped_unread "S2.4a";
    holds_on_recent_kernels s2_4b_unknown_range_flags_are_einval "S2.4b";
    holds_on_recent_kernels s2_4c_no_range_flag_is_einval "S2.4c";
    holds s2_4d_oversize_bitmap_is_einval "S2.4d";
    holds s2_4e_unreadable_bitmap_is_efault "S2.4e";
    holds s2_4f_bitmaps_are_whole_words "S2.4f";
    holds s2_4g_bitmaps_may_be_unaligned "S2.4g";
    holds_on_recent_kernels s2_4h_first_bad_range_decides_the_error "S2.4h";
    holds s2_5_new_filter_holds_when_set_returns "S2.5";
    holds s2_6_overlapping_and_wrapping_ranges_are_accepted "S2.6";
    holds s2_7_failed_call_that_sets_filter_keeps_old_filter "S2.7";
    holds s3_1_access_to_x2apic_msr_is_never_denied_by_filter "S3.1";
    holds s3_1a_x2apic_is_read_under_default_deny "S3.1a";
    holds s3_2_vm_without_filter_denies_nothing "S3.2";
    holds s3_3_first_matching_range_decides "S3.3";
    holds s3_3a_range_of_other_direction_does_not_stop_search "S3.3a";
    holds s3_3b_range_with_both_flags_has_one_bitmap "S3.3b";
    holds s3_4_default_action_decides_accesses_outside_all_ranges "S3.4";
    holds s3_5_wrapping_ranges_match_nothing "S3.5";
    holds s3_6_bits_past_last_msr_are_unused "S3.6";
    holds s4a_host_access_is_not_filtered "S4a";
    holds s4b_rdtsc_is_not_filtered "S4b";
    is_not_contradicted s4c_nested_msr_lists_are_filtered "S4c";
    is_not_contradicted s4d_access_above_cpl_0_faults_before_filter "S4d";
    is_not_contradicted s4e_wrmsrns_and_immediate_forms_are_filtered "S4e";
    holds s5_1_filter_is_asked_before_register "S5.1";
    holds_unless_ignored s5_1a_allowed_failing_access_is_unknown_or_invalid "S5.1a";
    holds_unless_ignored s5_2_no_fallback_to_another_reason "S5.2";
    holds s5_3_fields_of_msr_exit_hold_index_value_and_no_error "S5.3";
    holds s5_4_error_0_completes_a_read "S5.4";
    holds s5_4a_error_0_completes_a_write "S5.4a";
    holds s5_4b_nonzero_error_is_gp_at_the_instruction "S5.4b";
    holds s5_4c_single_step_is_honoured "S5.4c";
    holds s5_5_kernel_reads_back_only_error_and_data_of_exit "S5.5";
    holds s5_5a_filter_and_mask_set_while_exit_is_pending_do_not_change_its_completion "S5.5a";
    holds s5_5b_registers_set_while_exit_is_pending "S5.5b";
    holds s5_6_immediate_exit_completes_pending_exit "S5.6";
    holds s5_7_denied_access_without_exit_is_gp_at_the_instruction "S5.7";
    holds s5_8_rewound_access_is_executed_again "S5.8";
    is_not_contradicted s6_hardware_bitmaps_pass_wanted_and_allowed_msrs "S6";
    holds s7a_msrs_treated_alike_are_steady_during_replace "S7a";
    holds s7b_mask_set_before_filter_prevents_gp "S7b";
    holds s7c_denied_access_without_mask_is_gp "S7c";
    is_not_contradicted s7d_filter_outlives_vcpus_at_teardown "S7d";
    is_not_contradicted s10_1_unknown_msr_reads_0_with_ignore_msrs "S10.1";
    holds s10_2_range_sizes_do_not_wrap "S10.2";
    holds s10_3_range_excludes_its_end "S10.3";
    is_not_contradicted s10_4_init_keeps_filter_and_mask "S10.4";
    holds s10_5_swapgs_is_not_filtered "S10.5";
}
