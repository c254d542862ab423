//! Functions in Python that read and replace rows.

use llava_sae_cpp::llama::Edited;
use llava_sae_cpp::{Editor, EditorAt, Error, HookPoint, Result, Token};
use numpy::{IntoPyArray, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::arrays;
use crate::raised::Raised;

/// A function at a hook point: of rows `[n_rows, width]`, their kind and token ids, to other rows or None.
struct Function {
    function: Py<PyAny>,
    raised: Raised,
}

/// Editors of functions by the hook points where they read and write.
pub(crate) fn editors(
    functions: Vec<(String, Py<PyAny>)>,
    raised: &Raised,
) -> Result<Vec<EditorAt>> {
    let editor = |(hook, function): (String, Py<PyAny>)| {
        let hook_point = HookPoint::parse(&hook)?;
        Ok(EditorAt {
            read: hook_point,
            write: hook_point,
            editor: Box::new(Function {
                function,
                raised: raised.clone(),
            }),
        })
    };
    functions.into_iter().map(editor).collect()
}

impl Function {
    fn call(&self, py: Python<'_>, rows: &mut [f32], tokens: &[Token]) -> PyResult<Edited> {
        // Rows of one kind come together.
        let kind = tokens[0].kind.name();
        let ids = tokens.iter().map(|token| token.id.unwrap_or(-1));
        let ids = ids.collect::<Vec<i32>>().into_pyarray(py);
        let width = rows.len() / tokens.len();
        let given = arrays::matrix(py, rows.to_vec(), width)?;
        let replaced = self.function.call1(py, (given, kind, ids))?;
        if replaced.is_none(py) {
            return Ok(Edited::No);
        }
        let replaced: PyReadonlyArray2<'_, f32> = replaced.extract(py)?;
        rows.copy_from_slice(replaced.as_slice()?);
        Ok(Edited::Yes)
    }
}

impl Editor for Function {
    fn write(&mut self, rows: &mut [f32], tokens: &[Token]) -> Result<Edited> {
        let done = Python::try_attach(|py| {
            self.call(py, rows, tokens).map_err(|error| {
                let what = format!("a function at a hook point has raised: {error}");
                self.raised.put(error);
                Error::invalid(what)
            })
        });
        // Where Python is ending, nobody waits for the run.
        done.unwrap_or_else(|| Err(Error::interrupted()))
    }
}
