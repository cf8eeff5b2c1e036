"""What the metrics of to_prometheus.py mean."""

from __future__ import annotations

COUNTERS = "As /sys/kernel/mm/ksm/{} once settled."

PROCESS = {
    "mappings": "Candidate pages of the process.",
    "ksm_merging_pages": "As in /proc/PID/ksm_stat once settled.",
    "ksm_zero_pages": "As in /proc/PID/ksm_stat once settled.",
    "ksm_process_profit": "As in /proc/PID/ksm_stat once settled, bytes.",
    "pss_before": "PSS of the candidate pages of the process, bytes.",
    "pss_after": "The same once settled, bytes.",
}

GROUP = {
    "processes": "Processes of the group.",
    "ksm_merging_pages": "As in /proc/PID/ksm_stat once settled, of the group.",
    "ksm_process_profit": "As in /proc/PID/ksm_stat once settled, of the group, bytes.",
    "pss_before": "PSS of the candidate pages of the group, bytes.",
    "pss_after": "The same once settled, bytes.",
    "net_bytes": "PSS that the group loses, less the records of ksmd for it.",
}

HELP = {
    "info": "Whose memory was evaluated; always 1.",
    "time_seconds": "When the memory was read, seconds since the epoch.",
    "page_size_bytes": "Size of a page.",
    "unreadable_ratio": "Share of the pages that could not be read, 0 to 1.",
    "processes_lost": "Selected processes of which nothing could be read.",
    "general_profit": "As /sys/kernel/mm/ksm/general_profit once settled, bytes: counts mappings.",
    "ksm_rmap_items": "Records that ksmd keeps of pages, as in /proc/PID/ksm_stat, in total.",
    "frames_freed": "Page frames really freed.",
    "bytes_freed": "Memory really freed.",
    "net_bytes": "Memory really freed less the records of ksmd.",
    "metadata_bytes": "Records of ksmd.",
    "thps_split": "Transparent huge pages that would be split.",
    "frames_merged_now": "KSM pages that are there already.",
    "calm_frames_freed": "Page frames freed if only pages merge that stood still over the samples.",
    "calm_bytes_freed": "Memory freed if only pages merge that stood still over the samples.",
    "calm_net_bytes": "The same less the records of ksmd.",
    "worth": "Does KSM pay: yes, little, no, or nothing to merge; always 1.",
    "net_rss_ratio": "net_bytes of the RSS of the selected processes.",
    "net_ram_ratio": "net_bytes of the memory of the host.",
    "candidate_pages": "Candidate pages by what becomes of them.",
    "ineligible_bytes": "Memory that ksmd does not look at, or in vain, by reason.",
    "frames_freed_within": "Page frames freed if only pages of one uid, cgroup … might share.",
    "frames_freed_across": "Page frames freed by sharing across them.",
    "full_scan_seconds": "Time that a full scan takes as the target is set.",
    "full_scan_cpu_seconds": "CPU time of ksmd for a full scan.",
    "saving_reached_seconds": "Time until so many percent of the saving are there.",
    **{f"process_{name}": meaning for name, meaning in PROCESS.items()},
    **{f"group_{name}": meaning for name, meaning in GROUP.items()},
}
