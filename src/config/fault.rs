//! What is wrong with what the operator wrote: all of it at once, each fault with its place.

use std::cell::RefCell;
use std::fmt;

/// A position in a file; line and column count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One fault. Prints as `conf/gateway.yaml:12:7: limits.gateway.requests: expected a rate such as …, found …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Empty for a fault in an environment variable.
    pub file: String,
    /// `None`: the whole file, or a variable.
    pub place: Option<Place>,
    /// `upstreams.local.servers[0].url`, or the name of a variable; empty where the text is not even YAML.
    pub path: String,
    /// What was expected, what was found, and what to do about it.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if let Some(place) = self.place {
                write!(f, ":{place}")?;
            }
            f.write_str(": ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every fault that was found, one a line; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// At least one.
    pub(super) fn of(faults: Vec<Fault>) -> Self {
        Self(faults)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Collects faults and warnings while a file is read. Shared by all readers, hence the cells.
pub(super) struct Report {
    main_file: String,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<String>>,
}

impl Report {
    pub(super) fn new(main_file: &str) -> Self {
        Self { main_file: main_file.to_owned(), faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// Whether this is the file that names all others.
    pub(super) fn is_main(&self, file: &str) -> bool {
        self.main_file == file
    }

    pub(super) fn fault(&self, mut fault: Fault) {
        // One fault is one line, whatever text it quotes.
        fault.message = fault.message.replace(char::is_control, "\u{fffd}");
        self.faults.borrow_mut().push(fault);
    }

    /// How many there are so far.
    pub(super) fn faults(&self) -> usize {
        self.faults.borrow().len()
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }

    /// The warnings if there is no fault, else the faults in the order of their places, the main file's first.
    pub(super) fn close(self) -> Result<Vec<String>, Faults> {
        let mut faults = self.faults.into_inner();
        if !faults.is_empty() {
            faults.sort_by(|a, b| {
                let order = |fault: &Fault| (fault.file != self.main_file, fault.place);
                order(a).cmp(&order(b))
            });
            // What two readers look at is said once.
            faults.dedup();
            return Err(Faults(faults));
        }
        Ok(self.warnings.into_inner())
    }
}
