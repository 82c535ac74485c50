//! A VM of which bad input should change nothing.

use kvm_memslots::backend::MemoryModel;
use kvm_memslots::{Builder, Changes, Error, Limits, RegionId, RegionSpec, Vm, at};

use super::{HVA, PAGE, changes, map_all, memory, on_model, ram};

/// A VM with one region, 16 pages at page 16, and what it looks like.
pub struct Fixture {
    pub vm: Vm,
    pub model: MemoryModel,
    pub id: RegionId,
    pub before: (String, String),
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(Vm::builder(), Limits::x86())
    }

    pub fn with(builder: Builder, limits: Limits) -> Self {
        let (vm, model) = on_model(builder, MemoryModel::new(limits));
        // The backing goes on behind it.
        let main = RegionSpec::ram(at(16 * PAGE, 16 * PAGE), memory(HVA + 16 * PAGE, 64 * PAGE));
        let [id] = map_all(&vm, [main.label("main")]);
        let before = look(&vm, &model);
        Self { vm, model, id, before }
    }

    /// Applies what `f` makes, behind a change that is fine, and checks that
    /// nothing has changed and that the last one is to blame.
    pub fn refused(&self, f: impl FnOnce(&mut Changes)) -> (Error, String) {
        let mut c = changes(|c| _ = c.map(ram(1000, 1)));
        f(&mut c);
        let counted = self.model.counts();
        let preview = self.vm.preview(&c).unwrap_err();
        let last = c.len() - 1;
        let error = self.vm.apply(c).unwrap_err();
        assert_eq!(preview.to_string(), error.to_string());
        assert_eq!(error.change(), Some(last), "{error}");
        assert_eq!(self.model.counts(), counted, "checked before the first call");
        self.unchanged();
        let text = error.to_string();
        (error, text)
    }

    pub fn map(&self, spec: RegionSpec) -> (Error, String) {
        self.refused(|c| _ = c.map(spec))
    }

    pub fn unchanged(&self) {
        assert_eq!(look(&self.vm, &self.model), self.before);
    }
}

pub fn look(vm: &Vm, model: &MemoryModel) -> (String, String) {
    (format!("{:?}", vm.regions()), format!("{:?}", model.slots(0)))
}

#[allow(unused_macros)]
macro_rules! assert_refused {
    ($refused:expr, $pattern:pat, $errno:ident, $($text:expr),+) => {
        let (error, text) = $refused;
        assert!(matches!(error.kind(), $pattern), "{error:?}");
        assert_eq!(error.errno(), Errno::$errno, "{error}");
        $(assert!(text.contains($text), "{text:?} does not say {:?}", $text);)+
    };
}
