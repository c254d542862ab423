//! A picture's features as they come, and two runs on one model in two threads, one of them steered and
//! cancelled: `cargo run --release --example two_runs -- MODEL MMPROJ SAE… PICTURE FEATURE`, or without
//! arguments on the embedded demo.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use llava_sae_cpp::steering::{Change, Intervention};
use llava_sae_cpp::{
    CancelFlag, HookedModel, Keep, Kinds, ModelFiles, Picture, PromptForm, RunOptions, Session,
    SessionOptions, demo,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (files, picture, name) = match &args[..] {
        [model, mmproj, saes @ .., picture, feature] => {
            let files = ModelFiles {
                model: model.into(),
                mmproj: Some(mmproj.into()),
                saes: saes.iter().map(PathBuf::from).collect(),
            };
            (files, &**picture, &**feature)
        }
        _ => (
            demo::files()?,
            "assets/pictures/carrot-mushroom.png",
            "mushroom",
        ),
    };
    let model = HookedModel::open(&files, SessionOptions::default())?;
    let image = model.encode_image(&Picture::open(picture.as_ref())?)?;
    let (form, never) = (PromptForm::Chat, CancelFlag::default());
    let prompt = model.prompt("Describe the image.", form, Some(&image), &never)?;
    let options = |cancel: &CancelFlag| RunOptions {
        keep: Keep {
            features: Kinds::ALL,
            ..Keep::default()
        },
        max_tokens: 32,
        cancel: cancel.clone(),
        ..RunOptions::default()
    };
    let mut session = Session::new(model.clone());
    session.run_with(&prompt, options(&never), &mut |step| {
        for (sae, seen) in model.saes().iter().zip(&step.trace.saes) {
            let rows = step.new_rows.clone();
            let n_active: usize = rows.map(|row| seen.activations.row(row).count()).sum();
            println!(
                "{:?}: {n_active} active features of {}",
                step.text,
                sae.id()
            );
        }
        ControlFlow::Continue(())
    })?;
    let subtract = Intervention::new(model.find_feature(name)?, Change::steer(-12.0));
    let cancel = CancelFlag::default();
    let steered = RunOptions {
        steering: Some(model.steering(vec![subtract])?),
        ..options(&cancel)
    };
    std::thread::scope(|scope| {
        let runs = [options(&never), steered].map(|options| {
            let (model, prompt) = (model.clone(), &prompt);
            scope.spawn(move || Session::new(model).run(prompt, options))
        });
        cancel.cancel();
        for run in runs {
            match run.join().expect("no panic") {
                Ok(run) => println!("{:?}, ended by {:?}", run.text, run.stop),
                Err(error) => println!("error: {error}"),
            }
        }
    });
    Ok(())
}
