//! `sira codec`: which codecs there are, and what each makes of a file.

mod report;
mod trial;

use std::collections::BTreeMap;
use std::path::Path;

use sira_codec::{Calibration, Chain, KvFacts};
use sira_tensor::TensorSpec;

use super::output::Output;
use super::{print, print_line};
use crate::Failure;
use crate::cli::{CodecCommand, CodecTryArgs};
use crate::formats::safetensors::{Contents, Tensor};
use crate::formats::{self, Format, TensorFile};
use crate::progress::Progress;
use trial::{Subject, Trial};

/// Chains that `all` tries of every file; of floats, those made for them besides.
const ALL: [&str; 9] = ["lz4", "zstd", "planes+zstd", "float-nibble", "float-rans", "fp8", "int8", "int4", "kvq"];

/// Stages that take a calibration: `all` tries them besides where there is one.
const CALIBRATED: [&str; 2] = ["kvq", "kvtc"];

/// `sira codec`.
pub(crate) async fn codec(command: CodecCommand) -> Result<(), Failure> {
    match command {
        CodecCommand::List { json } => report::list(json),
        CodecCommand::Try(args) => try_file(&args).await,
    }
}

/// `sira codec try`.
async fn try_file(args: &CodecTryArgs) -> Result<(), Failure> {
    let calibration = args.calibration.as_deref().map(calibration).transpose()?.map(|(calibration, _)| calibration);
    let (chains, asked) = chains(&args.codecs, calibration.as_ref())?;
    let (file, contents) = TensorFile::open(&args.file).await?;
    let tensor = choose(&args.file, &contents, args.tensor.as_deref())?;
    let spec = describe(tensor.spec.clone(), &contents.metadata, &args.axes)?;
    let bytes = file.read(tensor).await?;
    let facts = KvFacts::of("data", &spec, None);
    let subject = Subject { spec: &spec, facts: facts.as_ref(), calibration: calibration.as_ref(), bytes: &bytes };
    if args.out.is_some() && !(asked && chains.len() == 1) {
        return Err(Failure::Usage("--out writes what one codec gives back: name it with --codec".into()));
    }
    let progress = Progress::bytes(None, !args.json);
    let mut trials = Vec::new();
    for chain in &chains {
        progress.message(chain.as_str());
        match subject.run(chain, args.seconds) {
            Ok(trial) => trials.push(trial),
            // What `all` lists and this tensor is not for is left out.
            Err(_) if !asked => {}
            Err(error) => return Err(Failure::with(chain, error)),
        }
        if args.json
            && let Some(trial) = trials.last().filter(|trial| trial.chain == *chain)
        {
            print_line(&trial.json(args.cores()))?;
        }
    }
    drop(progress);
    if let (Some(path), [trial]) = (&args.out, &trials[..]) {
        write(path, &tensor.name, trial, &contents.metadata).await?;
    }
    if args.json { Ok(()) } else { print(&report::table(&spec, &trials, args.cores())) }
}

/// The chains to try, and whether they were named one by one. Those that take a calibration get the one that is there; of `all`, besides being tried
/// without where they can do without.
fn chains(texts: &[String], calibration: Option<&Calibration>) -> Result<(Vec<Chain>, bool), Failure> {
    let all = texts.is_empty() || texts.iter().any(|text| text == "all");
    let parse = |text: &str| match calibration.filter(|_| takes_calibration(text)) {
        Some(calibration) => format!("{text}@{}", calibration.hash()).parse(),
        None => text.parse::<Chain>(),
    };
    let chains = match all {
        false => texts.iter().map(|text| parse(text)).collect(),
        true => {
            let calibrated = CALIBRATED.iter().filter(|_| calibration.is_some());
            ALL.iter().map(|text| text.parse::<Chain>()).chain(calibrated.map(|stage| parse(stage))).collect::<Result<Vec<_>, _>>()
        }
    };
    Ok((chains.map_err(|error| Failure::Usage(error.to_string()))?, !all))
}

/// Whether a chain is one that takes a calibration, and names none.
fn takes_calibration(text: &str) -> bool {
    let stage = text.split(':').next().unwrap_or_default();
    CALIBRATED.contains(&stage) && !text.contains('@')
}

/// Reads a calibration; gives its bytes too.
pub(super) fn calibration(path: &Path) -> Result<(Calibration, Vec<u8>), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::with(path.display(), error);
    let len = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
    if len > Calibration::MAX_LEN as u64 {
        return Err(failed(&format!("{len} bytes; a calibration has at most {}", Calibration::MAX_LEN)));
    }
    let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
    let calibration = Calibration::from_bytes(&bytes).map_err(|error| failed(&error))?;
    Ok((calibration, bytes))
}

/// The tensor of a file that is named, or its only one.
fn choose<'a>(path: &Path, contents: &'a Contents, name: Option<&str>) -> Result<&'a Tensor, Failure> {
    let names = || contents.tensors.iter().map(|tensor| format!("{:?}", tensor.name)).collect::<Vec<_>>().join(", ");
    match (name, &contents.tensors[..]) {
        (Some(name), tensors) => tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| Failure::Usage(format!("{}: no tensor {name:?}; it holds {}", path.display(), names()))),
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure::Usage(format!("{}: several tensors; choose one with --tensor: {}", path.display(), names()))),
    }
}

/// A tensor with what its file says of it.
fn describe(spec: TensorSpec, metadata: &BTreeMap<String, String>, axes: &[String]) -> Result<TensorSpec, Failure> {
    let spec = formats::named(spec, axes, metadata).map_err(|error| Failure::Usage(error.to_string()))?;
    // Texts about the file that are too long for a tensor are not what a codec asks for.
    Ok(spec.clone().with_attributes(metadata.clone()).unwrap_or(spec))
}

/// Writes what a codec gave back, with the file's own metadata.
async fn write(path: &Path, name: &str, trial: &Trial, metadata: &BTreeMap<String, String>) -> Result<(), Failure> {
    let header = match Format::of(path)? {
        Format::Safetensors => formats::safetensors::lay_out(&[(name, &trial.spec)], metadata)?.0,
        format => formats::header(format, path, &trial.spec, name)?,
    };
    let mut output = Output::create(path)?;
    output.write(&header).await?;
    output.write(&trial.decoded).await?;
    output.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use sira_tensor::DType;

    #[test]
    fn what_a_file_says_of_its_axes_holds_where_it_fits() {
        let spec = |shape: &[u64]| TensorSpec::new(DType::BFloat16, shape.to_vec()).unwrap();
        let metadata = [("axes", "token, dim"), ("rope", "half")].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        assert_eq!(describe(spec(&[2, 3]), &metadata, &[]).unwrap().axes(), ["token", "dim"]);
        assert!(describe(spec(&[2]), &metadata, &[]).unwrap().axes().is_empty());
        assert_eq!(describe(spec(&[2]), &metadata, &["token".into()]).unwrap().axes(), ["token"]);
        assert!(describe(spec(&[2]), &metadata, &["a".into(), "b".into()]).is_err());
        assert_eq!(describe(spec(&[2]), &metadata, &[]).unwrap().attributes()["rope"], "half");
    }

    #[test]
    fn what_all_tries_exists() {
        let (chains, asked) = chains(&[], None).unwrap();
        assert_eq!((chains.len(), asked), (ALL.len(), false));
        assert!(super::chains(&["zstd".into(), "lz5".into()], None).unwrap_err().to_string().contains("known: none"));
    }

    #[test]
    fn a_calibration_goes_to_those_that_take_one() {
        let calibration = Calibration::from_bytes(include_bytes!("../../../codec/golden/kvq.calib")).unwrap();
        let hash = calibration.hash();
        let texts = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
            let (chains, _) = chains(&texts, Some(&calibration)).unwrap();
            chains.iter().map(Chain::to_string).collect::<Vec<String>>()
        };
        let other = format!("kvq@{}", "5f".repeat(32));
        assert_eq!(
            texts(&["kvq:high", "kvtc", "int8", &other]),
            [format!("kvq:high@{hash}"), format!("kvtc:standard@{hash}"), "int8".into(), other]
        );
        let all = texts(&["all"]);
        assert_eq!(all[all.len() - 3..], ["kvq".to_owned(), format!("kvq@{hash}"), format!("kvtc:standard@{hash}")]);
    }
}
