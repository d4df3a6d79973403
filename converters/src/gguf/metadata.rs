//! Keys and values of a GGUF: the types a value may have, and the keys in the order of the file.

/// `general.alignment` where the file says nothing. Source: GGUF specification.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are GGUF's value types by their names")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    U32s(Vec<u32>),
    F32s(Vec<f32>),
    /// Any other array: its elements, all of one type.
    Array(Vec<Value>),
}

impl Value {
    /// A whole number that is not negative, from any integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A number, from either float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            // 1e6 and the like are exact; others keep float32's value
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// Number of elements of an array.
    pub fn array_len(&self) -> Option<usize> {
        match self {
            Self::Strings(v) => Some(v.len()),
            Self::I32s(v) => Some(v.len()),
            Self::U32s(v) => Some(v.len()),
            Self::F32s(v) => Some(v.len()),
            Self::Array(v) => Some(v.len()),
            _ => None,
        }
    }

    /// A short text for messages and `mmx inspect`: long strings and arrays are cut.
    pub fn describe(&self) -> String {
        /// Characters or elements shown.
        const SHOWN: usize = 48;
        match self {
            Self::String(s) if s.chars().count() > SHOWN => {
                format!("{:?}... ({} bytes)", s.chars().take(SHOWN).collect::<String>(), s.len())
            }
            Self::String(s) => format!("{s:?}"),
            Self::U8(n) => n.to_string(),
            Self::I8(n) => n.to_string(),
            Self::U16(n) => n.to_string(),
            Self::I16(n) => n.to_string(),
            Self::U32(n) => n.to_string(),
            Self::I32(n) => n.to_string(),
            Self::U64(n) => n.to_string(),
            Self::I64(n) => n.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Strings(v) => format!("{} strings: {:?}...", v.len(), &v[..v.len().min(4)]),
            Self::I32s(v) => format!("{} i32: {:?}...", v.len(), &v[..v.len().min(8)]),
            Self::U32s(v) => format!("{} u32: {:?}...", v.len(), &v[..v.len().min(8)]),
            Self::F32s(v) => format!("{} f32: {:?}...", v.len(), &v[..v.len().min(8)]),
            Self::Array(v) => format!("{} values", v.len()),
        }
    }
}

/// Keys and values in the order of the file; keys are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: std::collections::HashMap<String, usize>,
}

impl Metadata {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// The value of a key that holds a string.
    pub fn string(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Sets a key, in place if it is there already. Returns whether it was new.
    pub fn set(&mut self, key: impl Into<String>, value: Value) -> bool {
        let key = key.into();
        if let Some(&i) = self.index.get(&key) {
            self.entries[i].1 = value;
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }

    /// All entries in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
