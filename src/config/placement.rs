//! Which core does what on this machine.
//!
//! `workers = "auto"` and the like mean something only together with the cores that the process may use, so this is
//! apart from the parse: [`Placement::of`] is a pure function of both. The shell pins threads by it and
//! [`Loaded::check_machine`] refuses what does not fit.
//!
//! Invariant: `workers` is never empty when `cores` is not, and holds no core twice.

use super::Loaded;
use super::problem::Problem;
use super::values::{Node, Workers};

/// The cores of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// One worker on each of these cores.
    pub workers: Vec<usize>,
    /// The control thread's core; one of `workers` only when there are too few cores.
    pub control: usize,
}

impl Placement {
    /// Lays a node out on `cores`, the cores that this process may use. Cores that do not exist are left out, and a
    /// count is cut to what there is; [`Loaded::check_machine`] reports both.
    pub fn of(node: &Node, cores: &[usize]) -> Self {
        let mut cores = cores.to_vec();
        cores.sort_unstable();
        cores.dedup();
        let first = cores.first().copied().unwrap_or(0);
        let control = node.control_core.unwrap_or_else(|| match &node.workers {
            Workers::Cores(listed) => cores.iter().copied().find(|core| !listed.contains(core)).unwrap_or(first),
            Workers::Auto | Workers::Count(_) => first,
        });
        let apart = cores.iter().copied().filter(|core| *core != control);
        let workers = match &node.workers {
            Workers::Auto if cores.len() > 2 => apart.collect(),
            Workers::Auto => cores,
            Workers::Count(count) => {
                let shared = cores.iter().copied().filter(|core| *core == control);
                apart.chain(shared).take(*count).collect()
            }
            Workers::Cores(listed) => listed.iter().copied().filter(|core| cores.contains(core)).collect(),
        };
        Placement { workers, control }
    }
}

impl Loaded {
    /// Checks the configuration against the cores that this process may use, and returns what is unwise.
    ///
    /// # Errors
    ///
    /// Cores that are not in `cores`, and more workers than cores.
    pub fn check_machine(&self, cores: &[usize]) -> Result<Vec<Problem>, Vec<Problem>> {
        let node = &self.config.node;
        let listed = cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let missing = |key: &str, core: usize| {
            let what = format!("this machine has no core {core} for this process");
            self.places.problem(key, what, format!("use some of {listed}"))
        };
        let mut problems = Vec::new();
        match &node.workers {
            Workers::Cores(workers) => {
                let absent = workers.iter().enumerate().filter(|(_, core)| !cores.contains(core));
                problems.extend(absent.map(|(index, core)| missing(&format!("node.workers[{index}]"), *core)));
            }
            Workers::Count(count) if *count > cores.len() => {
                let what = format!("{count} workers are more than the {} cores of this process", cores.len());
                problems.push(self.places.problem("node.workers", what, format!("write {} or \"auto\"", cores.len())));
            }
            Workers::Count(_) | Workers::Auto => {}
        }
        if let Some(core) = node.control_core.filter(|core| !cores.contains(core)) {
            problems.push(missing("node.control_core", core));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let placement = Placement::of(node, cores);
        let is_shared = placement.workers.contains(&placement.control);
        // Where the operator listed that very core, the parse has warned; on two cores or one there is no choice.
        let is_known = matches!(&node.workers, Workers::Cores(_)) && node.control_core.is_some();
        if is_shared && !is_known && cores.len() > 2 {
            let what = format!("every core has a worker, so the control thread shares core {}", placement.control);
            return Ok(vec![self.places.problem("node.workers", what, "leave one core without a worker")]);
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(workers: &str, cores: &[usize]) -> (Vec<usize>, usize) {
        let text = format!("[node]\n{workers}\n{}", super::super::tests::REST);
        let loaded = super::super::parse(&text, "t.toml").unwrap();
        let placement = Placement::of(&loaded.config.node, cores);
        (placement.workers, placement.control)
    }

    #[test]
    fn workers_leave_the_control_core_alone_when_they_can() {
        assert_eq!(place("workers = \"auto\"", &[0, 1, 2, 3]), (vec![1, 2, 3], 0));
        assert_eq!(place("workers = \"auto\"", &[0, 1]), (vec![0, 1], 0));
        assert_eq!(place("workers = \"auto\"", &[5]), (vec![5], 5));
        assert_eq!(place("workers = \"auto\"\ncontrol_core = 3", &[0, 1, 2, 3]), (vec![0, 1, 2], 3));
        assert_eq!(place("workers = 1", &[0, 1]), (vec![1], 0));
        assert_eq!(place("workers = 2", &[0, 1]), (vec![1, 0], 0));
        assert_eq!(place("workers = [0, 2]", &[0, 1, 2]), (vec![0, 2], 1));
        assert_eq!(place("workers = [1, 0]", &[0, 1]), (vec![1, 0], 0));
    }

    #[test]
    fn cores_that_are_not_there_are_errors() {
        let text = format!("[node]\nworkers = [0, 7]\ncontrol_core = 9\n{}", super::super::tests::REST);
        let loaded = super::super::parse(&text, "t.toml").unwrap();
        let problems = loaded.check_machine(&[0, 1]).unwrap_err();
        let expected = "t.toml:2: node.workers[1]: this machine has no core 7 for this process; use some of 0, 1";
        assert_eq!(problems[0].to_string(), expected);
        assert_eq!((problems[1].line, problems[1].key.as_str()), (3, "node.control_core"));
    }
}
