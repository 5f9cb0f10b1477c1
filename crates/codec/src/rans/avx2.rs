//! Whole turns of the lanes by AVX2: four vectors of eight states. The same bytes as the portable way.

use std::arch::x86_64::*;

use super::table::{Entry, PRECISION, TOTAL, Table};
use super::{LANES, LEAST, States};
use crate::CodecError;

/// States in a vector.
const WIDTH: usize = 8;

/// Whether this machine can.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

/// Appends the words that encoding `run`, last symbol first, puts out. `run` is whole turns, the first symbol belongs to lane 0.
///
/// # Panics
/// Never, but is a bug where [`available`] is false.
#[allow(unsafe_code, reason = "calls a function compiled for AVX2; measured: encodes four times as fast")]
pub(super) fn encode_turns(run: &[u8], table: &Table, states: &mut States, words: &mut Vec<u8>) -> Result<(), CodecError> {
    // Turns whose words fit into the buffer; a page or so, that it stays in the nearest cache.
    const TURNS: usize = 64;
    let mut buffer = [0; TURNS * LANES + WIDTH];
    for part in run.rchunks(TURNS * LANES) {
        // SAFETY: `available` was true, so the processor has what the function is compiled for.
        let written = unsafe { encode_part(part, table, states, &mut buffer) };
        let written = written.ok_or_else(|| CodecError::encode("rans", "a symbol has no frequency"))?;
        words.extend(buffer[..written].iter().flat_map(|word: &u16| word.to_le_bytes()));
    }
    Ok(())
}

/// Puts the words into `buffer`, and says how many, or `None` for a symbol without a frequency. `buffer` has room for a word a symbol
/// and a vector more.
#[allow(unsafe_code, reason = "stores of vectors")]
#[target_feature(enable = "avx2,popcnt")]
fn encode_part(part: &[u8], table: &Table, states: &mut States, buffer: &mut [u16]) -> Option<usize> {
    let entries: &[Entry; 256] = &table.entries;
    let mut state = load(states);
    let mut at = 0;
    let mut least = _mm256_set1_epi32(1);
    let zero = _mm256_setzero_si256();
    for turn in part.as_chunks::<LANES>().0.iter().rev() {
        for (vector, symbols) in state.iter_mut().zip(turn.as_chunks::<WIDTH>().0).rev() {
            let entry = |lane: usize| entries[usize::from(symbols[lane])].0 as i64;
            // In the order in which the shuffles below put them right.
            let low = _mm256_set_epi64x(entry(5), entry(4), entry(1), entry(0));
            let high = _mm256_set_epi64x(entry(7), entry(6), entry(3), entry(2));
            let (low, high) = (_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
            let reciprocal = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(low, high));
            let rest = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(low, high));
            let frequency = _mm256_and_si256(rest, _mm256_set1_epi32(0xffff));
            let start = _mm256_srli_epi32::<16>(rest);
            least = _mm256_min_epi32(least, frequency);

            // Lanes that would become too large put out their lower half.
            let stays = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32::<20>(*vector));
            let out = !_mm256_movemask_ps(_mm256_castsi256_ps(stays)) as u8;
            let order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(COMPRESS[usize::from(out)] as i64));
            let halves = _mm256_permutevar8x32_epi32(_mm256_and_si256(*vector, _mm256_set1_epi32(0xffff)), order);
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            let room: &mut [u16; WIDTH] = buffer.get_mut(at..at + WIDTH)?.first_chunk_mut()?;
            // SAFETY: eight words are 16 bytes, of any alignment.
            unsafe { _mm_storeu_si128(room.as_mut_ptr().cast(), halves) };
            at += out.count_ones() as usize;
            let x = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(*vector), *vector, stays);

            // As in `push`: the upper halves of the products, even lanes, then odd ones.
            let even = _mm256_srli_epi64::<32>(_mm256_mul_epu32(x, reciprocal));
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(x), _mm256_srli_epi64::<32>(reciprocal));
            let quotient = _mm256_blend_epi32::<0b1010_1010>(even, odd);
            let rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
            // One more in the quotient adds TOTAL and takes a frequency from the rest.
            let step = _mm256_sub_epi32(_mm256_set1_epi32(TOTAL as i32), frequency);
            let step = _mm256_andnot_si256(_mm256_cmpgt_epi32(frequency, rest), step);
            let x = _mm256_add_epi32(_mm256_slli_epi32::<{ PRECISION as i32 }>(quotient), _mm256_add_epi32(rest, start));
            *vector = _mm256_add_epi32(x, step);
        }
    }
    store(state, states);
    (_mm256_movemask_epi8(_mm256_cmpgt_epi32(least, zero)) == -1).then_some(at)
}

/// Decodes into `out`, whole turns of which the first symbol belongs to lane 0, as far as words are certain to last, and says how far.
#[allow(unsafe_code, reason = "calls a function compiled for AVX2; measured: decodes six times as fast")]
pub(super) fn decode_turns(words: &mut &[u8], table: &Table, states: &mut States, out: &mut [u8]) -> usize {
    // SAFETY: `available` was true, so the processor has what the function is compiled for.
    unsafe { decode_whole(words, table, states, out) }
}

#[allow(unsafe_code, reason = "loads and stores of vectors")]
#[target_feature(enable = "avx2,popcnt")]
fn decode_whole(words: &mut &[u8], table: &Table, states: &mut States, out: &mut [u8]) -> usize {
    let slots: &[u32; TOTAL as usize] = &table.slots;
    let mut state = load(states);
    let mut left = words.len();
    let mut done = 0;
    let mask = _mm256_set1_epi32(TOTAL as i32 - 1);
    let least = _mm256_set1_epi32(LEAST as i32);
    for turn in out.as_chunks_mut::<LANES>().0 {
        // A turn takes a word a lane at most.
        if left < 2 * LANES {
            break;
        }
        let mut symbols = [_mm256_setzero_si256(); LANES / WIDTH];
        for (vector, symbols) in state.iter_mut().zip(&mut symbols) {
            // Single loads: they take two thirds of a gather's time on processors on which it is microcode, and need no trust.
            let (low, high) = (_mm256_castsi256_si128(*vector), _mm256_extracti128_si256::<1>(*vector));
            let pairs = [_mm_cvtsi128_si64(low), _mm_extract_epi64::<1>(low), _mm_cvtsi128_si64(high), _mm_extract_epi64::<1>(high)];
            let slot = |lane: usize| slots[(pairs[lane / 2] >> (lane % 2 * 32)) as usize % TOTAL as usize] as i32;
            let slot = _mm256_setr_epi32(slot(0), slot(1), slot(2), slot(3), slot(4), slot(5), slot(6), slot(7));
            *symbols = _mm256_and_si256(slot, _mm256_set1_epi32(255));
            // (frequency - 1) * quotient + quotient + distance
            let quotient = _mm256_srli_epi32::<{ PRECISION as i32 }>(*vector);
            let distance = _mm256_and_si256(_mm256_srli_epi32::<8>(slot), mask);
            let x = _mm256_mullo_epi32(_mm256_srli_epi32::<20>(slot), quotient);
            let x = _mm256_add_epi32(x, _mm256_add_epi32(quotient, distance));

            let small = _mm256_cmpgt_epi32(least, _mm256_min_epu32(x, least));
            let refill = _mm256_movemask_ps(_mm256_castsi256_ps(small)) as u8;
            // SAFETY: `left` was at least 64 at the start of the turn, and each of its four vectors takes 16 at most, so the 16 bytes
            // before `left`, of any alignment, are words.
            let last = unsafe { _mm_loadu_si128(words.as_ptr().add(left - 2 * WIDTH).cast()) };
            // SAFETY: 32 bytes, of any alignment.
            let order = unsafe { _mm256_loadu_si256(EXPAND[usize::from(refill)].as_ptr().cast()) };
            let word = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(last), order);
            let shift = _mm256_and_si256(small, _mm256_set1_epi32(16));
            *vector = _mm256_or_si256(_mm256_sllv_epi32(x, shift), word);
            left -= 2 * refill.count_ones() as usize;
        }
        let halves = [_mm256_packus_epi32(symbols[0], symbols[1]), _mm256_packus_epi32(symbols[2], symbols[3])];
        let bytes = _mm256_packus_epi16(halves[0], halves[1]);
        // The packs work within halves of a vector: put the groups of four in order.
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: a turn is 32 bytes, of any alignment.
        unsafe { _mm256_storeu_si256(turn.as_mut_ptr().cast(), bytes) };
        done += LANES;
    }
    store(state, states);
    *words = &words[..left];
    done
}

#[allow(unsafe_code, reason = "loads of vectors")]
#[target_feature(enable = "avx2")]
fn load(states: &States) -> [__m256i; LANES / WIDTH] {
    // SAFETY: eight states are 32 bytes, of any alignment.
    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(states.as_chunks::<WIDTH>().0[i].as_ptr().cast()) })
}

#[allow(unsafe_code, reason = "stores of vectors")]
#[target_feature(enable = "avx2")]
fn store(vectors: [__m256i; LANES / WIDTH], states: &mut States) {
    for (vector, states) in vectors.into_iter().zip(states.as_chunks_mut::<WIDTH>().0) {
        // SAFETY: eight states are 32 bytes, of any alignment.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast(), vector) };
    }
}

/// For each set of lanes, a byte each: the set's lanes, the highest first.
static COMPRESS: [u64; 256] = {
    let mut orders = [0; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut count) = (8, 0);
        while lane > 0 {
            lane -= 1;
            if set >> lane & 1 == 1 {
                orders[set] |= (lane as u64) << (8 * count);
                count += 1;
            }
        }
        set += 1;
    }
    orders
};

/// For each set of lanes, four bytes a lane: which of the last eight words, as bytes, it takes, 0x80 (none) in place of the upper half
/// and in lanes outside the set. The lowest lane of the set takes the last word.
static EXPAND: [[u8; 4 * WIDTH]; 256] = {
    let mut orders = [[0x80; 4 * WIDTH]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut word) = (0, WIDTH as u8);
        while lane < WIDTH {
            if set >> lane & 1 == 1 {
                word -= 1;
                orders[set][4 * lane] = 2 * word;
                orders[set][4 * lane + 1] = 2 * word + 1;
            }
            lane += 1;
        }
        set += 1;
    }
    orders
};
