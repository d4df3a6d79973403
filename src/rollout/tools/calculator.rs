//! A calculator that parses arithmetic and never runs code.
//!
//! In: an expression as Python writes it: `+ - * / // % **`, parentheses, some functions of `math`,
//! `pi`, `e`. `^` is a power, `×`, `÷` and full-width parentheses are read as the reference does. Out:
//! the value as Python writes it. Whole numbers stay whole within 38 digits (i128).

use mmx_converters::chat::python_float;

/// Characters of an expression at most.
const MOST_CHARACTERS: usize = 1000;
/// Parentheses, signs and powers within each other at most.
const DEEPEST: usize = 64;

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Float(x) => x,
        }
    }

    fn is_zero(self) -> bool {
        self.float() == 0.0
    }

    /// A float that is one: Python raises an error or gives infinity, which no answer is.
    fn finite(x: f64) -> Found {
        if x.is_finite() { Ok(Self::Float(x)) } else { Err("the value is out of range".to_owned()) }
    }
}

type Found = Result<Number, String>;

/// The value of an expression, as Python's `str` writes it.
///
/// # Errors
/// What is no arithmetic, a division by zero, a value too large: a sentence.
pub fn evaluate(expression: &str) -> Result<String, String> {
    if expression.chars().count() > MOST_CHARACTERS {
        return Err(format!("expected at most {MOST_CHARACTERS} characters"));
    }
    let text: String = expression
        .chars()
        .map(|c| match c {
            '×' => '*',
            '÷' => '/',
            '−' => '-',
            '（' => '(',
            '）' => ')',
            other => other,
        })
        .collect();
    let mut parser = Parser { rest: text.trim(), depth: 0 };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(match value {
            Number::Whole(n) => n.to_string(),
            Number::Float(x) => python_float(x),
        }),
        Some(c) => Err(format!("expected an operator or the end, found {c:?}")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, word: &str) -> bool {
        self.peek();
        match self.rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// One level deeper: a text of nothing but parentheses must not fill the stack.
    fn deeper(&mut self, parse: impl FnOnce(&mut Self) -> Found) -> Found {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("expected at most {DEEPEST} levels"));
        }
        let found = parse(self);
        self.depth -= 1;
        found
    }

    fn sum(&mut self) -> Found {
        let mut left = self.product()?;
        loop {
            if self.take("+") {
                left = both(left, self.product()?, i128::checked_add, |a, b| a + b)?;
            } else if self.take("-") {
                left = both(left, self.product()?, i128::checked_sub, |a, b| a - b)?;
            } else {
                return Ok(left);
            }
        }
    }

    fn product(&mut self) -> Found {
        let mut left = self.signed()?;
        loop {
            if self.take("//") {
                left = floor_divide(left, self.signed()?)?;
            } else if self.take("/") {
                let right = nonzero(self.signed()?)?;
                left = Number::finite(left.float() / right.float())?;
            } else if self.take("%") {
                left = modulo(left, self.signed()?)?;
            } else if self.peek() == Some('*') && !self.rest.starts_with("**") {
                self.take("*");
                left = both(left, self.signed()?, i128::checked_mul, |a, b| a * b)?;
            } else {
                return Ok(left);
            }
        }
    }

    fn signed(&mut self) -> Found {
        if self.take("-") {
            let value = self.deeper(Self::signed)?;
            return both(Number::Whole(0), value, i128::checked_sub, |_, b| -b);
        }
        if self.take("+") {
            return self.deeper(Self::signed);
        }
        let base = self.atom()?;
        if self.take("**") || self.take("^") {
            // from the right, and above a sign before the base: -2**2 is -4
            let exponent = self.deeper(Self::signed)?;
            return power(base, exponent);
        }
        Ok(base)
    }

    fn atom(&mut self) -> Found {
        match self.peek() {
            Some('(') => {
                self.take("(");
                let value = self.deeper(Self::sum)?;
                if !self.take(")") {
                    return Err("expected a closing parenthesis".to_owned());
                }
                Ok(value)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_ascii_alphabetic() => self.named(),
            Some(c) => Err(format!("expected a number, found {c:?}")),
            None => Err("expected a number, found the end".to_owned()),
        }
    }

    fn number(&mut self) -> Found {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let text = self.rest;
        let mut end = digits(text);
        let mut whole = true;
        if text[end..].starts_with('.') {
            end += 1 + digits(&text[end + 1..]);
            whole = false;
        }
        if let Some(exponent) = text[end..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            let digits = digits(&exponent[sign..]);
            if digits > 0 {
                end += 1 + sign + digits;
                whole = false;
            }
        }
        let (number, rest) = text.split_at(end);
        self.rest = rest;
        if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.') {
            return Err(format!("expected an operator after {number}"));
        }
        if whole {
            return number
                .parse()
                .map(Number::Whole)
                .map_err(|_| format!("{number} is out of range"));
        }
        number
            .parse()
            .map_err(|_| format!("expected a number, found {number:?}"))
            .and_then(Number::finite)
    }

    /// A constant or a function.
    fn named(&mut self) -> Found {
        self.take("math.");
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        match name {
            "pi" => return Ok(Number::Float(std::f64::consts::PI)),
            "e" => return Ok(Number::Float(std::f64::consts::E)),
            "tau" => return Ok(Number::Float(std::f64::consts::TAU)),
            _ => {}
        }
        if !self.take("(") {
            return Err(format!("expected a number or a function, found {name:?}"));
        }
        let mut arguments = Vec::new();
        while !self.take(")") {
            if !arguments.is_empty() && !self.take(",") {
                return Err(format!("{name}: expected a comma or a closing parenthesis"));
            }
            arguments.push(self.deeper(Self::sum)?);
        }
        call(name, &arguments)
    }
}

/// Whole numbers stay whole, with anything else both are floats.
fn both(
    left: Number,
    right: Number,
    whole: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Found {
    match (left, right) {
        (Number::Whole(a), Number::Whole(b)) => {
            whole(a, b).map(Number::Whole).ok_or_else(|| "the value is out of range".to_owned())
        }
        (a, b) => Number::finite(float(a.float(), b.float())),
    }
}

fn nonzero(number: Number) -> Found {
    if number.is_zero() { Err("division by zero".to_owned()) } else { Ok(number) }
}

fn floor_divide(left: Number, right: Number) -> Found {
    let right = nonzero(right)?;
    let whole = |a: i128, b: i128| {
        let quotient = a.checked_div(b)?;
        // towards minus infinity, not towards 0
        Some(quotient - i128::from(a % b != 0 && (a < 0) != (b < 0)))
    };
    both(left, right, whole, |a, b| float_divide(a, b).0)
}

fn modulo(left: Number, right: Number) -> Found {
    let right = nonzero(right)?;
    let whole = |a: i128, b: i128| {
        let rest = a.checked_rem(b)?;
        Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
    };
    both(left, right, whole, |a, b| float_divide(a, b).1)
}

/// Quotient towards minus infinity, and the remainder with the divisor's sign, as CPython has them:
/// the quotient is that of what the remainder leaves.
fn float_divide(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0f64.copysign(a / b), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

fn power(base: Number, exponent: Number) -> Found {
    match (base, exponent) {
        (Number::Whole(a), Number::Whole(b)) if b >= 0 => {
            let exponent = match u32::try_from(b) {
                Ok(exponent) => exponent,
                // of these a power of any size is whole; others are out of range long before
                Err(_) if matches!(a, -1..=1) => u32::try_from(b % 2 + 2).unwrap_or(2),
                Err(_) => return Err("the value is out of range".to_owned()),
            };
            let value = a.checked_pow(exponent);
            value.map(Number::Whole).ok_or_else(|| "the value is out of range".to_owned())
        }
        (a, b) if a.is_zero() && b.float() < 0.0 => Err("division by zero".to_owned()),
        (a, b) => Number::finite(a.float().powf(b.float())),
    }
}

fn call(name: &str, arguments: &[Number]) -> Found {
    let floats: Vec<f64> = arguments.iter().map(|n| n.float()).collect();
    let whole = |x: f64| {
        // floats of 2^127 and more are no i128
        let fits = x.is_finite() && x.abs() < 1.7e38;
        if fits {
            Ok(Number::Whole(x as i128))
        } else {
            Err("the value is out of range".to_owned())
        }
    };
    match (name, arguments) {
        ("abs", [Number::Whole(n)]) => {
            n.checked_abs().map(Number::Whole).ok_or_else(|| "the value is out of range".to_owned())
        }
        ("floor" | "ceil" | "trunc" | "int" | "round", [n @ Number::Whole(_)]) => Ok(*n),
        ("min" | "max", [first, rest @ ..]) => Ok(rest.iter().fold(*first, |best, n| {
            let less = n.float() < best.float();
            if less == (name == "min") && n.float() != best.float() { *n } else { best }
        })),
        ("pow", [base, exponent]) => power(*base, *exponent),
        ("gcd", [Number::Whole(a), Number::Whole(b)]) => Ok(Number::Whole(gcd(*a, *b))),
        ("factorial", [Number::Whole(n)]) => {
            // 33! is the last one below 2^127
            let n = u32::try_from(*n).ok().filter(|n| *n <= 33);
            let n = n.ok_or_else(|| "factorial: expected 0 to 33".to_owned())?;
            Ok(Number::Whole((1..=i128::from(n)).product()))
        }
        ("round", [x, Number::Whole(digits)]) => {
            let digits = i32::try_from(*digits).ok().filter(|d| (-300..=300).contains(d));
            let digits = digits.ok_or_else(|| "round: expected at most 300 digits".to_owned())?;
            match x {
                Number::Whole(n) => rounded_whole(*n, digits),
                Number::Float(x) => rounded(*x, digits),
            }
        }
        ("log", [_, _]) => Number::finite(floats[0].ln() / floats[1].ln()),
        ("atan2", [_, _]) => Number::finite(floats[0].atan2(floats[1])),
        ("hypot", [_, _]) => Number::finite(floats[0].hypot(floats[1])),
        (_, [_]) => {
            let x = floats[0];
            match name {
                "abs" => Number::finite(x.abs()),
                "floor" => whole(x.floor()),
                "ceil" => whole(x.ceil()),
                "trunc" | "int" => whole(x.trunc()),
                "round" => whole(x.round_ties_even()),
                "float" => Number::finite(x),
                "sqrt" => Number::finite(x.sqrt()),
                "exp" => Number::finite(x.exp()),
                "log" | "ln" => Number::finite(x.ln()),
                "log2" => Number::finite(x.log2()),
                "log10" => Number::finite(x.log10()),
                "sin" => Number::finite(x.sin()),
                "cos" => Number::finite(x.cos()),
                "tan" => Number::finite(x.tan()),
                "asin" => Number::finite(x.asin()),
                "acos" => Number::finite(x.acos()),
                "atan" => Number::finite(x.atan()),
                "radians" => Number::finite(x.to_radians()),
                "degrees" => Number::finite(x.to_degrees()),
                _ => Err(format!("no function {name} of one number is known")),
            }
        }
        _ => Err(format!("no function {name} of {} numbers is known", arguments.len())),
    }
}

fn gcd(a: i128, b: i128) -> i128 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i128::try_from(a).unwrap_or(i128::MAX)
}

/// A whole number with so many zeros at its end as `digits` is below 0; halves go to the even side.
fn rounded_whole(n: i128, digits: i32) -> Found {
    let Some(unit) = 10i128.checked_pow(digits.min(0).unsigned_abs()) else {
        return Ok(Number::Whole(0));
    };
    let (quotient, rest) = (n.div_euclid(unit), n.rem_euclid(unit));
    let up = rest > unit / 2 || rest == unit / 2 && unit > 1 && quotient % 2 != 0;
    let value = (quotient + i128::from(up)).checked_mul(unit);
    value.map(Number::Whole).ok_or_else(|| "the value is out of range".to_owned())
}

/// A float with so many digits after its point, by its decimal digits as Python rounds.
fn rounded(x: f64, digits: i32) -> Found {
    if digits >= 0 {
        let text = format!("{x:.*}", digits as usize);
        return Number::finite(text.parse().unwrap_or(x));
    }
    let unit = 10f64.powi(-digits);
    Number::finite((x / unit).round_ties_even() * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_python_gives() {
        for (text, expected) in [
            ("1+2*3", "7"),
            ("2**3**2", "512"),
            ("-2**2", "-4"),
            ("2**-1", "0.5"),
            ("2^10", "1024"),
            ("7×6÷2", "21.0"),
            ("（1+2）*3", "9"),
            ("7//2", "3"),
            ("-7//2", "-4"),
            ("-7%3", "2"),
            ("7%-3", "-2"),
            ("-7.5//2", "-4.0"),
            ("1e3", "1000.0"),
            (".5+5.", "5.5"),
            ("10/4", "2.5"),
            ("63*67", "4221"),
            ("99999999999999999999*3", "299999999999999999997"),
            ("math.sqrt(2)", "1.4142135623730951"),
            ("round(2.5)", "2"),
            ("round(2.675, 2)", "2.67"),
            ("max(1, 2.5, 2)", "2.5"),
            ("min(3, 1)", "1"),
            ("abs(-3)", "3"),
            ("factorial(5)", "120"),
            ("gcd(12, 18)", "6"),
            ("--3", "3"),
            ("0**0", "1"),
            ("(-1)**1000000000001", "-1"),
            ("1/3", "0.3333333333333333"),
            ("1e22*1.0", "1e+22"),
            ("floor(-2.5)", "-3"),
            ("10// -1e-7", "-100000001.0"),
            ("12 %-3.", "-0.0"),
            ("-12%(.25)", "0.0"),
            ("round(25, -1)", "20"),
            ("round(-35, -1)", "-40"),
            ("round(7, -2)", "0"),
        ] {
            assert_eq!(evaluate(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_arithmetic_or_too_much_of_it() {
        for text in [
            "",
            "1/0",
            "1//0",
            "1%0",
            "0**-1",
            "import os",
            "().__class__",
            "__import__('os')",
            "1,000",
            "1 2",
            "2(3)",
            "1+",
            "(1",
            "1)",
            "9**9**9",
            "9**999999999999",
            "10**39",
            "1e999",
            "exp(1000)",
            "(-8)**0.5",
            "sqrt(-1)",
            "1_000",
            "0x10",
            "factorial(1000)",
            "lambda: 0",
            "a",
            "sqrt",
            "sqrt()",
            "sqrt(1, 2, 3)",
            "１+１",
        ] {
            assert!(evaluate(text).is_err(), "{text}: {:?}", evaluate(text));
        }
        assert!(evaluate(&"(".repeat(900)).unwrap_err().contains("levels"));
        assert!(evaluate(&"-".repeat(900)).unwrap_err().contains("levels"));
        assert!(evaluate(&"1+".repeat(900)).unwrap_err().contains("characters"));
    }

    #[test]
    fn no_text_makes_it_panic_and_a_value_is_a_number() {
        let words = [
            "1",
            "0",
            "23",
            "4.5",
            ".5",
            "1e3",
            "1e308",
            "170141183460469231731687303715884105727",
            "+",
            "-",
            "*",
            "/",
            "//",
            "%",
            "**",
            "^",
            "(",
            ")",
            " ",
            ",",
            "sqrt(",
            "round(",
            "max(",
            "floor(",
            "pow(",
            "gcd(",
            "abs(",
            "pi",
            "math.",
            "e",
            "×",
            "（",
            "x",
            "\u{0}",
            "😀",
        ];
        let mut random = mmx_converters::random::Random::new(1, 2);
        let mut values = 0;
        for _ in 0..200_000 {
            let length = 1 + random.below(9);
            let text: String = (0..length).map(|_| words[random.below(words.len())]).collect();
            if let Ok(value) = evaluate(&text) {
                values += 1;
                let number: f64 = value.parse().expect("a number");
                assert!(number.is_finite(), "{text}: {value}");
            }
        }
        assert!(values > 1000, "{values}");
    }
}
