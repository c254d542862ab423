//! Text in pictures, one line at a time, in DejaVu Sans. There is no shaping: characters stand one
//! after another, and one that the font does not have is its empty box.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

const ELLIPSIS: char = '…';

/// The font in one size.
pub(super) struct Text {
    font: FontRef<'static>,
    scale: PxScale,
}

impl Text {
    /// Text whose lines are `pixels` high.
    pub(super) fn new(pixels: f32) -> Self {
        let font = FontRef::try_from_slice(dejavu::sans::regular());
        Self {
            font: font.expect("the font comes with the program"),
            scale: PxScale::from(pixels),
        }
    }

    /// The width of a line, in pixels.
    pub(super) fn width(&self, line: &str) -> f32 {
        let font = self.font.as_scaled(self.scale);
        line.chars().map(|c| font.h_advance(font.glyph_id(c))).sum()
    }

    /// As much of a line as fits into `width` pixels, with an ellipsis where something is missing.
    pub(super) fn shortened(&self, line: &str, width: f32) -> String {
        if self.width(line) <= width {
            return line.to_owned();
        }
        let mut short = String::new();
        for c in line.chars() {
            short.extend([c, ELLIPSIS]);
            if self.width(&short) > width {
                short.truncate(short.len() - c.len_utf8() - ELLIPSIS.len_utf8());
                break;
            }
            short.pop();
        }
        format!("{}{ELLIPSIS}", short.trim_end())
    }

    /// Draws a line whose top left corner is at `x`, `y`; what lies outside of the image is cut off.
    pub(super) fn draw(&self, image: &mut RgbImage, line: &str, x: f32, y: f32, colour: Rgb<u8>) {
        let font = self.font.as_scaled(self.scale);
        let mut caret = point(x, y + font.ascent());
        for c in line.chars() {
            let glyph = font.glyph_id(c).with_scale_and_position(self.scale, caret);
            caret.x += font.h_advance(glyph.id);
            let Some(outline) = self.font.outline_glyph(glyph) else {
                continue; // a space
            };
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (
                    corner.x as i64 + i64::from(dx),
                    corner.y as i64 + i64::from(dy),
                );
                let inside = u32::try_from(x).ok().zip(u32::try_from(y).ok());
                if let Some(pixel) = inside.and_then(|(x, y)| image.get_pixel_mut_checked(x, y)) {
                    for (value, ink) in pixel.0.iter_mut().zip(colour.0) {
                        let mixed =
                            f32::from(*value) * (1.0 - coverage) + f32::from(ink) * coverage;
                        *value = mixed.round() as u8;
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn lines_that_are_too_long_are_shortened() {
        let text = Text::new(16.0);
        let check = |line: &str, width: f32, expected: &str| {
            let short = text.shortened(line, width);
            assert_eq!(short, expected);
            assert!(text.width(&short) <= width.max(text.width("…")));
        };
        check("carrot", 100.0, "carrot");
        check("carrot", text.width("carrot"), "carrot");
        check("carrot", text.width("car…"), "car…");
        check("a carrot", text.width("a …"), "a…");
        check("carrot", 0.0, "…");
        check("морковь", text.width("мор…"), "мор…");
        check("", 0.0, "");
    }
}
