//! The codec of what nobody chose one for.

use std::fmt;
use std::str::FromStr;

use sira_tensor::DType;

use crate::{Chain, CodecError};

/// How lower tiers keep a tensor for which neither its writer nor its namespace named a chain: lossless, and always the same one or one by
/// the element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultChain {
    /// Of bfloat16 and the float8 types.
    small_floats: Chain,
    others: Chain,
}

impl DefaultChain {
    /// The text of the default by element type.
    pub const AUTO: &'static str = "auto";

    /// The chain for elements of `dtype`.
    pub fn of(&self, dtype: DType) -> &Chain {
        match dtype {
            DType::BFloat16 | DType::Float8E4M3Fn | DType::Float8E4M3Fnuz | DType::Float8E5M2 | DType::Float8E5M2Fnuz => &self.small_floats,
            _ => &self.others,
        }
    }

    /// Whether every bit comes back, whatever the type.
    pub fn lossless(&self) -> bool {
        self.small_floats.lossless() && self.others.lossless()
    }
}

impl From<Chain> for DefaultChain {
    fn from(chain: Chain) -> DefaultChain {
        DefaultChain { small_floats: chain.clone(), others: chain }
    }
}

impl FromStr for DefaultChain {
    type Err = CodecError;

    /// A chain, or `auto`: `float-rans` for bfloat16 and the float8 types, which is smaller there and faster in both directions, and
    /// `planes+zstd` for the others, whose low bits may have something to find (docs/codecs.md).
    fn from_str(text: &str) -> Result<DefaultChain, CodecError> {
        match text {
            DefaultChain::AUTO => Ok(DefaultChain { small_floats: "float-rans".parse()?, others: "planes+zstd".parse()? }),
            chain => Ok(chain.parse::<Chain>()?.into()),
        }
    }
}

impl fmt::Display for DefaultChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.small_floats == self.others { self.others.as_str() } else { DefaultChain::AUTO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_goes_by_the_type_and_a_chain_is_for_all() {
        let auto: DefaultChain = "auto".parse().unwrap();
        assert_eq!((auto.of(DType::BFloat16).as_str(), auto.of(DType::Float32).as_str()), ("float-rans", "planes+zstd"));
        assert!(DType::all().all(|dtype| auto.of(dtype).lossless()) && auto.lossless());
        let zstd: DefaultChain = "zstd".parse().unwrap();
        assert!(DType::all().all(|dtype| zstd.of(dtype).as_str() == "zstd"));
        for text in ["auto", "zstd:9"] {
            let chain: DefaultChain = text.parse().unwrap();
            assert_eq!((chain.to_string().as_str(), chain.to_string().parse()), (text, Ok(chain)));
        }
        assert!("automatic".parse::<DefaultChain>().is_err() && !"int8".parse::<DefaultChain>().unwrap().lossless());
    }
}
