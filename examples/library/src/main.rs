//! What the library is for, on the embedded demo: runs on one model in two threads, features and vectors at
//! positions, a run that another thread cancels, and two SAEs in one pass.

use std::{error::Error, ops::ControlFlow, thread};

use llava_sae_cpp::steering::{Change, Intervention, Vector};
use llava_sae_cpp::{Keep, Kinds, Picture, Positions, PromptForm, RunOptions};
use llava_sae_cpp::{Session, SessionOptions, Stop, demo};

fn main() -> Result<(), Box<dyn Error>> {
    let picture = std::env::args().nth(1).ok_or("name a picture")?;
    let mut files = demo::files()?;
    let mut session = Session::open(&files, SessionOptions::default())?;
    let image = session.encode_image(&Picture::open(picture.as_ref())?)?;
    let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[&image])?;
    let (model, sae) = (session.model().clone(), session.sae().clone());

    // A feature is subtracted, and another's direction added as a vector, at some positions.
    let row = sae.decoder_row(sae.find_feature("carrot")?)?;
    let carrot = Vector::new("carrot", sae.hook_point(), row)?;
    let add = Intervention::new(carrot, Change::vector(4.0)).at(Positions::parse("image,last")?);
    let subtract = Intervention::new(model.find_feature("mushroom")?, Change::steer(-12.0));
    let options = |steering| RunOptions {
        steering,
        keep: Keep {
            features: Kinds::ALL,
            ..Keep::default()
        },
        max_tokens: 32,
        ..RunOptions::default()
    };
    let steering = Some(model.steering(vec![add, subtract])?);
    let both = [options(None), options(steering)];
    let run = |options: &RunOptions| Session::new(model.clone()).run(&prompt, options.clone());
    let alone = [run(&both[0])?, run(&both[1])?];
    let in_threads = thread::scope(|scope| {
        let threads = both.each_ref().map(|options| scope.spawn(|| run(options)));
        threads.map(|thread| thread.join().expect("no panic"))
    });
    for (alone, in_thread) in alone.iter().zip(in_threads) {
        assert_eq!(in_thread?.token_ids, alone.token_ids);
        println!("{}", alone.text);
    }
    let cancellable = options(None);
    let cancel = cancellable.cancel.clone();
    let cancelled = session.run_with(&prompt, cancellable, &mut |_| {
        thread::scope(|scope| _ = scope.spawn(|| cancel.cancel()));
        ControlFlow::Continue(())
    })?;
    assert_eq!(cancelled.stop, Stop::Interrupted);
    // The demo has one SAE, so a copy of it is the other.
    let copy = files.saes[0].with_file_name("another-sae.gguf");
    std::fs::copy(&files.saes[0], &copy)?;
    files.saes.push(copy);
    let mut session = Session::new(model.open_beside(&files, SessionOptions::default())?);
    for seen in session.run(&prompt, options(None))?.trace.saes {
        assert_eq!(seen.activations, alone[0].trace.saes[0].activations);
    }
    Ok(())
}
