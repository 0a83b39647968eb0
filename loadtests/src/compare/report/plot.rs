//! A plot of medians with their spread, one panel a case.

use crate::compare::outcome::{Outcome, Standing};
use anyhow::{Result, anyhow};
use plotters::prelude::*;

const WIDTH: u32 = 900;
const HEAD: i32 = 44;
const ROW: i32 = 26;
const LABELS: i32 = 330;
const VALUES: i32 = 90;
const OURS: RGBColor = RGBColor(20, 110, 190);
const PEER: RGBColor = RGBColor(150, 155, 165);
const TEXT: RGBColor = RGBColor(30, 30, 30);

/// An SVG document.
///
/// # Errors
/// Drawing fails.
pub fn svg(outcomes: &[Outcome]) -> Result<String> {
    let drawn: Vec<(&Outcome, Vec<&Standing>)> = outcomes.iter().map(with_samples).collect();
    let height: i32 = drawn.iter().map(|(_, rows)| panel_height(rows)).sum();
    let mut text = String::new();
    {
        let size = (WIDTH, u32::try_from(height.max(1))?);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let failed = |error| anyhow!("plot: {error}");
        area.fill(&WHITE).map_err(failed)?;
        let mut top = 0;
        for (outcome, rows) in &drawn {
            panel(&area, top, outcome, rows).map_err(failed)?;
            top += panel_height(rows);
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn with_samples(outcome: &Outcome) -> (&Outcome, Vec<&Standing>) {
    let rows = outcome.contenders.iter();
    (
        outcome,
        rows.filter(|one| !one.samples.is_empty()).collect(),
    )
}

fn panel_height(rows: &[&Standing]) -> i32 {
    HEAD + ROW * i32::try_from(rows.len()).unwrap_or(0) + 14
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Failed = DrawingAreaErrorKind<std::io::Error>;

fn panel(area: &Area<'_>, top: i32, outcome: &Outcome, rows: &[&Standing]) -> Result<(), Failed> {
    let title = ("sans-serif", 17).into_font().color(&TEXT);
    area.draw_text(&outcome.title, &title, (12, top + 14))?;
    let spreads = rows.iter().filter_map(|one| one.spread());
    let most = spreads.map(|spread| spread.max).fold(0.0, f64::max);
    let right = i32::try_from(WIDTH).unwrap_or(i32::MAX) - VALUES;
    let at = |value: f64| LABELS + pixels(value / most, right - LABELS);
    let small = ("sans-serif", 14).into_font().color(&TEXT);
    for (one, row) in rows.iter().zip(0..) {
        let Some(spread) = one.spread() else { continue };
        let y = top + HEAD + row * ROW;
        area.draw_text(&one.name, &small, (12, y + 4))?;
        let color = if one.is_ours { OURS } else { PEER };
        let bar = [
            (LABELS, y),
            (at(spread.median).max(LABELS + 1), y + ROW - 8),
        ];
        area.draw(&Rectangle::new(bar, color.filled()))?;
        let middle = y + (ROW - 8) / 2;
        let (from, to) = (at(spread.min), at(spread.max));
        area.draw(&PathElement::new(vec![(from, middle), (to, middle)], TEXT))?;
        for x in [from, to] {
            area.draw(&PathElement::new(
                vec![(x, middle - 4), (x, middle + 4)],
                TEXT,
            ))?;
        }
        let shown = outcome.unit.show(spread.median);
        area.draw_text(&shown, &small, (to.max(at(spread.median)) + 8, y + 4))?;
    }
    Ok(())
}

/// That share of `width`, within it.
fn pixels(share: f64, width: i32) -> i32 {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let wanted = share * f64::from(width);
    (0..=width)
        .rev()
        .find(|x| f64::from(*x) <= wanted)
        .unwrap_or(0)
}
