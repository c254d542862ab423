//! Hook points: `TransformerLens`' names for places in the residual stream, and llama.cpp's.

use std::fmt;

use crate::{Error, Result};

/// The residual stream after a block: `blocks.L.hook_resid_post` in `TransformerLens`' terms,
/// `hidden_states[L + 1]` in Hugging Face's, the graph node `l_out-L` in llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookPoint {
    layer: usize,
}

impl HookPoint {
    /// Reads a hook point's name, such as `blocks.12.hook_resid_post`.
    ///
    /// # Errors
    /// Every other hook point is refused: this program reads and edits the residual stream only.
    pub fn parse(name: &str) -> Result<Self> {
        let unsupported = || {
            Error::invalid(format!("hook point `{name}` is not supported"))
                .with_hint("use an SAE of the residual stream: `blocks.L.hook_resid_post` or `blocks.L.hook_resid_pre`")
        };
        let (layer, site) = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
            .ok_or_else(unsupported)?;
        let layer: usize = layer.parse().map_err(|_| unsupported())?;
        match site {
            "hook_resid_post" => Ok(Self { layer }),
            // The stream before a block is the stream after the one below it.
            "hook_resid_pre" if layer > 0 => Ok(Self { layer: layer - 1 }),
            _ => Err(unsupported()),
        }
    }

    /// The block whose output this is, counted from 0.
    pub fn layer(self) -> usize {
        self.layer
    }

    /// The name of the node in llama.cpp's graph.
    pub fn node_name(self) -> String {
        format!("l_out-{}", self.layer)
    }

    /// Checks that a model of `n_layers` blocks has this hook point and shows all its rows there.
    ///
    /// # Errors
    /// When the layer does not exist, or is the last one: llama.cpp computes the last block's
    /// feed-forward part for the rows that need logits only, so the other rows never exist.
    pub fn check_layer(self, n_layers: usize) -> Result<()> {
        if self.layer >= n_layers {
            return Err(Error::invalid(format!(
                "the SAE belongs to `{self}`, but this model has {n_layers} layers"
            ))
            .with_hint(format!("layers of this model are 0 to {}", n_layers - 1)));
        }
        if self.layer + 1 == n_layers {
            return Err(Error::invalid(format!(
                "the SAE belongs to `{self}`, the model's last layer, where llama.cpp keeps only the rows that need logits"
            ))
            .with_hint("use an SAE of an earlier layer"));
        }
        Ok(())
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.hook_resid_post", self.layer)
    }
}

#[cfg(test)]
mod tests {
    use super::HookPoint;

    #[test]
    fn names_become_nodes() {
        let check = |name: &str, node: Option<&str>| {
            let found = HookPoint::parse(name).ok().map(HookPoint::node_name);
            assert_eq!(found.as_deref(), node, "{name}");
        };
        check("blocks.12.hook_resid_post", Some("l_out-12"));
        check("blocks.12.hook_resid_pre", Some("l_out-11"));
        check("blocks.0.hook_resid_pre", None);
        check("blocks.12.hook_mlp_out", None);
        check("blocks.-1.hook_resid_post", None);
        check("layers.12", None);
        check("", None);
    }

    #[test]
    fn the_last_layer_is_refused() {
        let hook = HookPoint::parse("blocks.3.hook_resid_post").expect("a known name");
        assert!(hook.check_layer(5).is_ok());
        assert!(hook.check_layer(4).is_err());
        assert!(hook.check_layer(3).is_err());
    }
}
