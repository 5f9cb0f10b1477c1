//! The terminal of `sira top`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue};

/// How long the keyboard is listened to at once: a listener cannot be called off.
const SLICE: Duration = Duration::from_millis(100);

/// A terminal that shows one picture; as before when this is dropped.
pub(super) struct Screen;

/// What ends waiting.
pub(super) enum Event {
    /// Somebody wants no more.
    Quit,
    /// The terminal has another size.
    Resized,
    /// The time is over.
    Elapsed,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Screen> {
        terminal::enable_raw_mode()?;
        let screen = Screen;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Draws lines over what is there; `lines` is told how many there is room for, and what is too wide is cut.
    pub(super) fn draw(&self, lines: impl FnOnce(usize) -> Vec<String>) -> io::Result<()> {
        let (columns, rows) = terminal::size()?;
        let mut out = io::stdout().lock();
        queue!(out, cursor::MoveTo(0, 0))?;
        let lines = lines(usize::from(rows));
        for (i, line) in lines.iter().take(usize::from(rows)).enumerate() {
            // The last line has no end: it would scroll.
            let end = if i == 0 { "" } else { "\r\n" };
            write!(out, "{end}{}", cut(line, usize::from(columns)))?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// At most so many characters of a line.
fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    line.chars().take(columns.saturating_sub(1)).chain(['…']).take(columns).collect()
}

/// Waits for a key that means something, another size, or the end of `time`.
pub(super) async fn wait(time: Duration) -> io::Result<Event> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if let Some(event) = tokio::task::spawn_blocking(move || listen(left.min(SLICE))).await.map_err(io::Error::other)?? {
            return Ok(event);
        }
        if left.is_zero() {
            return Ok(Event::Elapsed);
        }
    }
}

fn listen(time: Duration) -> io::Result<Option<Event>> {
    if !event::poll(time)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        // In raw mode Ctrl-C is a key as any other.
        event::Event::Key(key) if key.kind != KeyEventKind::Release => {
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Event::Quit),
                KeyCode::Char('c' | 'd') if control => Some(Event::Quit),
                _ => None,
            }
        }
        event::Event::Resize(..) => Some(Event::Resized),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_the_width() {
        assert_eq!(cut("äbc", 3), "äbc");
        assert_eq!(cut("äbcd", 3), "äb…");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("abc", 0), "");
    }
}
