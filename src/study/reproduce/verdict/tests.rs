use super::*;
use crate::reproduce::Protocol;

/// The original experiment's protocol, made small: three classes, of which two must pass.
fn protocol() -> Protocol {
    let mut protocol = Protocol::built_in().remove(0);
    let reading = &mut protocol.reading;
    reading.classes.truncate(3); // pizza: 7310, 4270, 8266, 9573; golden retriever: 4501; lakeside: 9864, 3429, 4105
    reading.pictures_per_class = 2;
    reading.classes_needed = 2;
    reading.top = 2;
    protocol
}

/// A picture's features, as they are ranked.
fn picture(features: &[(usize, f32)]) -> Vec<FeatureScore> {
    let score = |&(feature, score): &(usize, f32)| FeatureScore {
        feature,
        score,
        lift: None,
        max: score,
        argmax_position: 0,
        n_tokens: 1,
    };
    features.iter().map(score).collect()
}

fn read(protocol: &Protocol, pictures: &[Vec<Vec<FeatureScore>>]) -> Vec<ClassReading> {
    read_classes(&protocol.reading, pictures, &|feature| {
        Some(feature.to_string())
    })
}

#[test]
fn auroc_is_the_share_of_pairs_won() {
    // Of 3 × 2 pairs, 3 > 1, 3 > 2, 2 > 1 and 2 = 2, 0 < both: (3 + 1/2) / 6.
    assert_eq!(auroc(&[3.0, 2.0, 0.0], &[1.0, 2.0]), Some(3.5 / 6.0));
    assert_eq!(auroc(&[0.0], &[0.0, 0.0]), Some(0.5));
    assert_eq!(auroc(&[2.0, 1.0], &[0.0]), Some(1.0));
    assert_eq!(auroc(&[0.0], &[1.0]), Some(0.0));
    assert_eq!(auroc(&[], &[1.0]), None);
    assert_eq!(auroc(&[1.0], &[]), None);
}

#[test]
fn auroc_is_that_of_all_pairs() {
    // Few values, so that there are many ties.
    let values =
        |n: u32, factor: u32| -> Vec<f32> { (0..n).map(|i| (i * factor % 7) as f32).collect() };
    for (n_inside, n_outside) in [(1, 1), (5, 9), (16, 96), (40, 3)] {
        let (inside, outside) = (values(n_inside, 5), values(n_outside, 3));
        let pairs = inside
            .iter()
            .flat_map(|a| outside.iter().map(move |b| (a, b)));
        let won = pairs.map(|(a, b)| match a.total_cmp(b) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 1.0,
        });
        let expected = won.sum::<f64>() / f64::from(n_inside * n_outside);
        assert_eq!(auroc(&inside, &outside), Some(expected));
    }
}

#[test]
fn a_class_is_ranked_without_hidden_features() {
    let mut protocol = protocol();
    protocol.reading.hidden = vec![5];
    // Means over both pictures: 5 → 9, 7310 → 2, 8 → 1.5, 4270 → 1, 9 → 0.5.
    let pizza = vec![
        picture(&[(5, 9.0), (7310, 4.0), (9, 1.0)]),
        picture(&[(5, 9.0), (8, 3.0), (4270, 2.0)]),
    ];
    let dogs = vec![picture(&[(4501, 1.0), (7310, 4.0)]), picture(&[(5, 1.0)])];
    let classes = read(&protocol, &[pizza, dogs, Vec::new()]);
    let top: Vec<_> = classes[0]
        .top
        .iter()
        .map(|one| (one.feature, one.score, one.is_published))
        .collect();
    assert_eq!(top, [(7310, 2.0, true), (8, 1.5, false)]);
    let published = |feature| {
        let mut all = classes[0].published.iter();
        all.find(|one| one.feature == feature)
            .expect("it is listed")
    };
    assert_eq!(published(7310).label.as_deref(), Some("7310"));
    assert_eq!(published(7310).rank, Some(1));
    assert_eq!(published(4270).rank, Some(3));
    assert_eq!(published(8266).rank, None);
    // 7310: 4 and 0 against 4 and 0: a half, one won, a half lost. 4270: 2 and 0 against 0 and 0.
    assert_eq!(published(7310).auroc, Some(0.5));
    assert_eq!(published(4270).auroc, Some(0.75));
    assert_eq!(published(8266).auroc, Some(0.5));
}

#[test]
fn a_class_passes_from_its_thresholds_on() {
    let others = || vec![picture(&[(1, 1.0)]), picture(&[(1, 1.0)])];
    let verdict = |protocol: &Protocol, pizza: Vec<Vec<FeatureScore>>| {
        read(protocol, &[pizza, others(), others()])[0].verdict
    };
    let protocol = protocol();
    let both = |features: &[(usize, f32)]| vec![picture(features), picture(features)];
    // Half of the four published features are among the top two, and all pairs are won.
    assert_eq!(
        verdict(&protocol, both(&[(7310, 2.0), (4270, 1.0)])),
        Verdict::Holds
    );
    // A quarter.
    assert_eq!(
        verdict(&protocol, both(&[(7310, 2.0), (3, 1.0), (4270, 0.5)])),
        Verdict::Fails
    );
    // One of four published features activates in one picture of two: AUROC 3/4 at the threshold, and above.
    let sometimes = || vec![picture(&[(7310, 2.0), (4270, 1.0)]), picture(&[])];
    let mut lenient = protocol.clone();
    lenient.reading.auroc = 0.75;
    assert_eq!(verdict(&lenient, sometimes()), Verdict::Holds);
    lenient.reading.auroc = 0.7501;
    assert_eq!(verdict(&lenient, sometimes()), Verdict::Fails);
    // One picture too few, or nothing to compare with.
    assert_eq!(
        verdict(&protocol, vec![picture(&[(7310, 2.0)])]),
        Verdict::NotTested
    );
    let alone = read(
        &protocol,
        &[both(&[(7310, 2.0), (4270, 1.0)]), Vec::new(), Vec::new()],
    );
    assert_eq!(alone[0].verdict, Verdict::NotTested);
    assert_eq!(alone[0].published[0].auroc, None);
}

fn classes(verdicts: &[Verdict]) -> Vec<ClassReading> {
    let class = |&verdict| ClassReading {
        class: "a".to_owned(),
        n_pictures: 16,
        verdict,
        published: Vec::new(),
        top: Vec::new(),
    };
    verdicts.iter().map(class).collect()
}

#[test]
fn reading_holds_when_enough_classes_pass() {
    use Verdict::{Fails, Holds, NotTested};
    let protocol = protocol(); // 2 of 3
    for (verdicts, expected) in [
        ([Holds, Holds, Fails], Holds),
        ([Holds, Holds, NotTested], Holds),
        ([Holds, NotTested, Fails], NotTested),
        ([NotTested, NotTested, Fails], NotTested),
        ([Holds, Fails, Fails], Fails),
        ([NotTested, Fails, Fails], Fails),
    ] {
        let claim = reading_claim(&protocol.reading, &classes(&verdicts));
        assert_eq!(claim.verdict, expected, "{verdicts:?}");
    }
}

fn caption(has_word: bool, mean_log_prob: Option<f64>) -> Caption {
    Caption {
        text: "a dog".to_owned(),
        has_word,
        mean_log_prob,
    }
}

const NO_WORD: bool = false;
const WORD: bool = true;

/// A picture's captions at 0 and at -2, -3, -4, -6, -7, of which the three in the middle count.
fn judged(original: Caption, steered: [(bool, f64); 5]) -> SteeredPicture {
    let steered = steered.map(|(has_word, log_prob)| caption(has_word, Some(log_prob)));
    let name = "dog.jpg".to_owned();
    judge_picture(
        &protocol().steering,
        name,
        original,
        steered.into(),
        Vec::new(),
    )
}

#[test]
fn a_picture_passes_when_the_word_goes_and_the_text_stays_likely() {
    let there = || caption(WORD, Some(-0.5));
    let gone = (NO_WORD, -1.0);
    let kept = (WORD, -0.5);
    // Two of three, and what does not count changes nothing.
    assert!(judged(there(), [kept, gone, gone, kept, kept]).passes);
    assert!(!judged(there(), [gone, gone, kept, kept, gone]).passes);
    // At most 1 nat less likely.
    let at_limit = (NO_WORD, -1.5);
    let beyond = (NO_WORD, -1.500_001);
    assert!(judged(there(), [kept, at_limit, at_limit, kept, kept]).passes);
    assert!(!judged(there(), [kept, at_limit, beyond, kept, kept]).passes);
    // More likely than the original is no loss.
    assert!(judged(there(), [kept, (NO_WORD, -0.1), gone, kept, kept]).passes);
    // The word has to be there at 0.
    assert!(!judged(caption(NO_WORD, Some(-0.5)), [gone; 5]).passes);
}

#[test]
fn an_empty_caption_passes_nothing() {
    let empty = || caption(NO_WORD, None);
    let steered = vec![empty(), empty(), empty(), empty(), empty()];
    let protocol = protocol();
    let original = caption(WORD, Some(-0.5));
    let picture = judge_picture(
        &protocol.steering,
        "a".to_owned(),
        original,
        steered,
        Vec::new(),
    );
    assert!(!picture.passes);
    assert_eq!(picture.steered[1].log_prob_loss, None);
    assert!(picture.steered[1].is_judged);
}

/// A picture that passes or not, with so many controls, of which so many lose the word.
fn described(passes: bool, has_word: bool, n_controls: usize, n_dropped: usize) -> SteeredPicture {
    let control = |i| ControlCaption {
        feature: i,
        label: None,
        as_strength: -3.0,
        caption: caption(i >= n_dropped, Some(-1.0)),
    };
    SteeredPicture {
        picture: "dog.jpg".to_owned(),
        passes,
        original: caption(has_word, Some(-0.5)),
        steered: Vec::new(),
        controls: (0..n_controls).map(control).collect(),
    }
}

#[test]
fn steering_holds_from_half_of_the_pictures_on() {
    let protocol = protocol(); // 4 pictures
    let claim = |passes: &[bool]| {
        let pictures: Vec<_> = passes
            .iter()
            .map(|&passes| described(passes, WORD, 0, 0))
            .collect();
        steering_claim(&protocol.steering, &pictures).verdict
    };
    assert_eq!(claim(&[true, true, false, false]), Verdict::Holds);
    assert_eq!(claim(&[true, false, false, false]), Verdict::Fails);
    assert_eq!(claim(&[true, true, true]), Verdict::NotTested);
    assert_eq!(claim(&[]), Verdict::NotTested);
}

#[test]
fn the_control_holds_up_to_its_share() {
    let protocol = protocol();
    let claim = |pictures: &[SteeredPicture]| {
        control_claim(&protocol.control, &protocol.steering, pictures)
    };
    let four = |n_dropped: [usize; 4], has_word: [bool; 4]| {
        let pairs = n_dropped.into_iter().zip(has_word);
        let pictures = pairs.map(|(n_dropped, has_word)| described(true, has_word, 5, n_dropped));
        pictures.collect::<Vec<_>>()
    };
    assert_eq!(
        claim(&four([1, 1, 0, 0], [WORD; 4])).verdict,
        Verdict::Holds
    ); // 2 of 20
    assert_eq!(
        claim(&four([1, 1, 1, 0], [WORD; 4])).verdict,
        Verdict::Fails
    );
    // What had no word cannot lose it: 0 of 10.
    let some = claim(&four([5, 5, 0, 0], [NO_WORD, NO_WORD, WORD, WORD]));
    assert_eq!(
        (some.verdict, &*some.found),
        (Verdict::Holds, "0 of 10 captions lose the word, 0 %")
    );
    let none = claim(&four([5, 5, 5, 5], [NO_WORD; 4]));
    assert_eq!(
        (none.verdict, &*none.found),
        (Verdict::NotTested, "no caption has the word")
    );
    assert_eq!(
        claim(&four([0; 4], [WORD; 4])[..3]).verdict,
        Verdict::NotTested
    );
}

#[test]
fn one_that_fails_outweighs_one_that_was_not_tested() {
    use Verdict::{Fails, Holds, NotTested};
    for (all, expected) in [
        ([Holds, Holds, Holds], Holds),
        ([Holds, NotTested, Holds], NotTested),
        ([Fails, NotTested, Holds], Fails),
    ] {
        assert_eq!(Verdict::of_all(all.into_iter()), expected);
    }
}
