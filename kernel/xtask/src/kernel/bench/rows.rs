//! What is measured, in which boots, and what is wanted of it.

/// A comparison: a scenario of `memslots bench`.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Names it.
    pub(super) work: &'static str,
    pub(super) scenario: &'static str,
    pub(super) regions: u64,
    /// What a vCPU does meanwhile, if there is one: `fault` or `spin`.
    pub(super) vcpu: Option<&'static str>,
    /// Whether caller and grace period share a processor, and cost the same on
    /// both sides: by the scheduler's choice one side may have a processor for
    /// each, which makes a grace period five times as long, and the other not.
    pub(super) pinned: bool,
    /// More runs than usual, where one is short.
    pub(super) runs: Option<u32>,
    /// How many times as fast as one call a region the batch has to be.
    pub(super) ratio: f64,
    /// How many grace periods the batch may take.
    pub(super) grace_periods: u64,
}

impl Row {
    /// The arguments for `memslots bench`.
    pub(super) fn args(&self) -> String {
        let vcpu = match self.vcpu {
            None => "--vcpus 0".to_owned(),
            Some(busy) => format!("--vcpus 1 --busy {busy}"),
        };
        let pin = if self.pinned { "" } else { " --no-pin" };
        format!("{} --regions {} {vcpu}{pin}", self.scenario, self.regions)
    }
}

/// Rows that are measured in one boot.
#[derive(Debug)]
pub(super) struct Boot {
    /// Names the log.
    pub(super) name: &'static str,
    /// What is special about the machine.
    pub(super) machine: &'static str,
    /// Whether one of this machine's processors has something else to do.
    pub(super) busy: bool,
    /// Whether it takes the kernel with slow grace periods.
    pub(super) slow_gp: bool,
    /// For the kernel's command line.
    pub(super) append: &'static str,
    pub(super) rows: Vec<&'static Row>,
}

impl Boot {
    /// The names of its rows, as filters see them.
    pub(super) fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| name(row, self.machine)).collect()
    }
}

const CREATE: Row = Row {
    work: "create 9000",
    scenario: "sparse",
    regions: 9000,
    vcpu: None,
    pinned: false,
    runs: None,
    ratio: 10.0,
    grace_periods: 1,
};
const DELETE: Row = Row {
    work: "delete 1000, a vCPU spinning",
    scenario: "delete",
    regions: 1000,
    vcpu: Some("spin"),
    ratio: 20.0,
    grace_periods: 2,
    ..CREATE
};

static QUIET: [Row; 4] = [
    CREATE,
    DELETE,
    Row {
        work: "dirty log on, 256 slots",
        scenario: "dirty-log-on",
        regions: 256,
        ratio: 20.0,
        ..CREATE
    },
    // At most 1.1 times what the single call takes.
    Row {
        work: "create one, 256 times",
        scenario: "singly",
        regions: 256,
        pinned: true,
        runs: Some(15),
        ratio: 1.0 / 1.1,
        grace_periods: 256,
        ..CREATE
    },
];
static BUSY: [Row; 2] = [
    Row {
        work: "create 9000, a vCPU faulting memory in",
        vcpu: Some("fault"),
        ratio: 100.0,
        ..CREATE
    },
    Row { ratio: 200.0, ..DELETE },
];
static SLOW: [Row; 1] = [Row { ratio: 1000.0, ..CREATE }];

/// The rows that `filters` let run, in their boots.
pub(super) fn boots(filters: &[String]) -> Vec<Boot> {
    let boot = |name, machine, rows: &'static [Row]| {
        let wanted = |row: &&Row| super::super::test::wanted(&self::name(row, machine), filters);
        let rows = rows.iter().filter(wanted).collect();
        Boot { name, machine, busy: false, slow_gp: false, append: "", rows }
    };
    let boots = [
        boot("quiet", "quiet", &QUIET),
        Boot { busy: true, ..boot("busy", "other core busy", &BUSY) },
        Boot {
            slow_gp: true,
            append: "srcutree.lab_expedited_ms=16",
            ..boot("slow-gp", "16 ms a grace period", &SLOW)
        },
    ];
    boots.into_iter().filter(|boot| !boot.rows.is_empty()).collect()
}

fn name(row: &Row, machine: &str) -> String {
    format!("{}, {machine}", row.work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_parts_of_their_names() {
        let names = |filter: &str| -> Vec<String> {
            boots(&[filter.to_owned()]).iter().flat_map(Boot::names).collect()
        };
        assert_eq!(names("16 ms"), ["create 9000, 16 ms a grace period"]);
        assert_eq!(names("delete").len(), 2);
        assert_eq!(names("nothing"), [""; 0]);
    }

    #[test]
    fn arguments() {
        assert_eq!(CREATE.args(), "sparse --regions 9000 --vcpus 0 --no-pin");
        assert_eq!(DELETE.args(), "delete --regions 1000 --vcpus 1 --busy spin --no-pin");
    }

    /// Else the output of one could be taken for another's.
    #[test]
    fn no_two_rows_of_a_boot_are_the_same_comparison() {
        for boot in boots(&[]) {
            let mut args: Vec<String> = boot.rows.iter().map(|row| row.args()).collect();
            let count = args.len();
            args.sort();
            args.dedup();
            assert_eq!(args.len(), count);
        }
    }
}
