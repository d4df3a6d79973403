//! A pickle machine for state dicts: tensors, storages, OrderedDict and plain data. Any other name
//! ends the reading with that name; nothing is imported and nothing is called.
//!
//! Every value lies in an arena and is named by its index, so shared and nested values cost nothing
//! extra, and dropping them does not recurse.

#![warn(clippy::arithmetic_side_effects)]

use std::collections::HashMap;

use crate::tensor::Dtype;

/// Longest pickle that is believed: a state dict of 50 thousand tensors with optimizer state takes
/// some 20 MB.
const MAX_BYTES: usize = 64 << 20;

/// A value of the pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    /// None, a dtype, an attribute: nothing of interest.
    Nothing,
    Int(i64),
    /// A float, a bool or bytes: data of no interest.
    Plain,
    Text(usize),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Name(usize),
    Storage(usize),
    Tensor(usize),
}

/// Names that may be used, by what they are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    RebuildTensorOfDtype,
    Size,
    Storage(Kind),
    /// A dtype where it is an argument, else data of no interest.
    Dtype(Kind),
    /// A storage of bytes: the tensor says its type.
    Untyped,
}

/// The element type of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Known(Dtype),
    /// A type that mmx does not compute with, by its name in safetensors headers or in torch.
    Other(&'static str),
}

/// A dtype by its name in the module torch.
fn kind_of(dtype: &str) -> Option<Kind> {
    use Kind::{Known, Other};
    Some(match dtype {
        "float32" => Known(Dtype::F32),
        "float16" => Known(Dtype::F16),
        "bfloat16" => Known(Dtype::Bf16),
        "float64" => Known(Dtype::F64),
        "int64" => Known(Dtype::I64),
        "int32" => Known(Dtype::I32),
        "uint8" => Known(Dtype::U8),
        "bool" => Known(Dtype::Bool),
        "int8" => Other("I8"),
        "int16" => Other("I16"),
        "uint16" => Other("U16"),
        "uint32" => Other("U32"),
        "uint64" => Other("U64"),
        "complex32" => Other("complex32"),
        "complex64" => Other("C64"),
        "complex128" => Other("complex128"),
        "float8_e4m3fn" => Other("F8_E4M3"),
        "float8_e5m2" => Other("F8_E5M2"),
        "float8_e4m3fnuz" => Other("F8_E4M3FNUZ"),
        "float8_e5m2fnuz" => Other("F8_E5M2FNUZ"),
        "float8_e8m0fnu" => Other("F8_E8M0"),
        "float4_e2m1fn_x2" => Other("F4"),
        _ => return None,
    })
}

#[derive(Clone, Debug)]
struct Storage {
    key: String,
    /// Nothing for bytes.
    dtype: Option<Kind>,
}

/// A tensor as the pickle describes it.
#[derive(Clone, Debug)]
pub(super) struct TensorView {
    /// The storage's key: the entry `data/KEY`.
    pub(super) storage: String,
    pub(super) dtype: Kind,
    /// First element, counted from the storage's start.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// A pickle, read.
#[derive(Debug)]
pub(super) struct Pickle {
    texts: Vec<String>,
    /// Tuples and lists.
    rows: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    names: Vec<Name>,
    storages: Vec<Storage>,
    tensors: Vec<TensorView>,
    result: Value,
}

impl Pickle {
    /// Reads a pickle to its end.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("expected at most {MAX_BYTES} bytes, found {}", bytes.len()));
        }
        let pickle = Self {
            texts: Vec::new(),
            rows: Vec::new(),
            dicts: Vec::new(),
            names: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
            result: Value::Nothing,
        };
        let mut machine = Machine {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            pickle,
        };
        loop {
            let at = machine.at;
            let more = machine.step().map_err(|message| format!("at byte {at}: {message}"))?;
            if !more {
                return Ok(machine.pickle);
            }
        }
    }

    /// The value that the pickle holds.
    pub(super) fn result(&self) -> &Value {
        &self.result
    }

    /// A dict's entries under text keys, if the value is a dict. A key set twice counts once, the
    /// last time.
    pub(super) fn dict(&self, value: &Value) -> Option<Vec<(&str, &Value)>> {
        let Value::Dict(i) = value else { return None };
        let mut entries: Vec<(&str, &Value)> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        for (key, value) in self.dicts.get(*i)? {
            let Some(key) = self.text(key) else { continue };
            match index.get(key).and_then(|&at| entries.get_mut(at)) {
                Some(entry) => entry.1 = value,
                None => {
                    index.insert(key, entries.len());
                    entries.push((key, value));
                }
            }
        }
        Some(entries)
    }

    /// A tensor.
    pub(super) fn tensor(&self, i: usize) -> Option<&TensorView> {
        self.tensors.get(i)
    }

    fn text(&self, value: &Value) -> Option<&str> {
        match value {
            Value::Text(i) => self.texts.get(*i).map(String::as_str),
            _ => None,
        }
    }

    fn tuple(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(i) | Value::List(i) => self.rows.get(*i).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A tuple of whole numbers that are not negative.
    fn sizes(&self, value: &Value) -> Option<Vec<usize>> {
        self.tuple(value)?.iter().map(size).collect()
    }
}

fn size(value: &Value) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// Appends to an arena and returns the index.
fn push<T>(arena: &mut Vec<T>, item: T) -> usize {
    arena.push(item);
    arena.len().saturating_sub(1)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pickle: Pickle,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n);
        let slice = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("truncated")?;
        self.at = self.at.saturating_add(n);
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "truncated".to_owned())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'\n').ok_or("truncated")?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|e| e.to_string())
    }

    fn length(&mut self, bytes: u32) -> Result<usize, String> {
        let n = match bytes {
            1 => u64::from(self.byte()?),
            4 => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        usize::try_from(n).map_err(|e| e.to_string())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn pop(&mut self) -> Result<Value, String> {
        // below a mark nothing may be taken
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("expected a value on the stack, found none".to_owned());
        }
        self.stack.pop().ok_or_else(|| "expected a value on the stack, found none".to_owned())
    }

    fn top(&self) -> Result<Value, String> {
        self.stack.last().copied().ok_or_else(|| "expected a value, found none".to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("expected a mark, found none")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_text(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("expected UTF-8: {e}"))?;
        let i = push(&mut self.pickle.texts, text.to_owned());
        self.push(Value::Text(i));
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        let i = push(&mut self.pickle.rows, items);
        self.push(Value::Tuple(i));
    }

    fn push_list(&mut self, items: Vec<Value>) {
        let i = push(&mut self.pickle.rows, items);
        self.push(Value::List(i));
    }

    fn push_dict(&mut self, flat: &[Value]) -> Result<(), String> {
        let i = push(&mut self.pickle.dicts, Vec::new());
        self.push(Value::Dict(i));
        self.set_items(flat)
    }

    /// Adds keys and values, one after the other, to the dict on top.
    fn set_items(&mut self, flat: &[Value]) -> Result<(), String> {
        let Value::Dict(i) = self.top()? else {
            return Err("expected a dict to set items of".to_owned());
        };
        let (pairs, rest) = flat.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("expected keys and values in pairs".to_owned());
        }
        if let Some(dict) = self.pickle.dicts.get_mut(i) {
            dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn append(&mut self, items: &[Value]) -> Result<(), String> {
        let Value::List(i) = self.top()? else {
            return Err("expected a list to append to".to_owned());
        };
        if let Some(list) = self.pickle.rows.get_mut(i) {
            list.extend_from_slice(items);
        }
        Ok(())
    }

    fn push_name(&mut self, module: &str, name: &str) -> Result<(), String> {
        let storage = match (module, name) {
            ("torch", "FloatStorage") => kind_of("float32"),
            ("torch", "HalfStorage") => kind_of("float16"),
            ("torch", "BFloat16Storage") => kind_of("bfloat16"),
            ("torch", "DoubleStorage") => kind_of("float64"),
            ("torch", "LongStorage") => kind_of("int64"),
            ("torch", "IntStorage") => kind_of("int32"),
            ("torch", "ByteStorage") => kind_of("uint8"),
            ("torch", "BoolStorage") => kind_of("bool"),
            ("torch", "CharStorage") => kind_of("int8"),
            ("torch", "ShortStorage") => kind_of("int16"),
            ("torch", "ComplexFloatStorage") => kind_of("complex64"),
            ("torch", "ComplexDoubleStorage") => kind_of("complex128"),
            _ => None,
        };
        let dtype = if module == "torch" { kind_of(name) } else { None };
        let found = match (module, name) {
            _ if storage.is_some() => storage.map(Name::Storage),
            _ if dtype.is_some() => dtype.map(Name::Dtype),
            ("torch.storage", "UntypedStorage") => Some(Name::Untyped),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Name::RebuildTensorOfDtype),
            ("collections", "OrderedDict") => Some(Name::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Name::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Name::RebuildParameter),
            ("torch", "Size") => Some(Name::Size),
            _ => None,
        };
        let Some(found) = found else {
            return Err(format!(
                "expected tensors and plain data, found the name {module}.{name}: refused, nothing is run"
            ));
        };
        let i = push(&mut self.pickle.names, found);
        self.push(Value::Name(i));
        Ok(())
    }

    /// `NAME(*arguments)`, for the names that stand for data.
    fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let Value::Name(i) = callee else {
            return Err("expected a name to build from, found other data".to_owned());
        };
        let arguments = self.pickle.tuple(&arguments).ok_or("expected a tuple of arguments")?;
        match (self.pickle.names.get(i), arguments) {
            (Some(Name::OrderedDict), []) => self.push_dict(&[]),
            (Some(Name::Size), [sizes]) => {
                let sizes = *sizes;
                self.push(sizes);
                Ok(())
            }
            (Some(Name::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => {
                let tensor = *tensor;
                self.push(tensor);
                Ok(())
            }
            (
                Some(Name::RebuildTensor | Name::RebuildTensorOfDtype),
                [Value::Storage(storage), offset, shape, stride, rest @ ..],
            ) => {
                let storage = self.pickle.storages.get(*storage).ok_or("expected a storage")?;
                // the third form: requires_grad, hooks, dtype
                let own = match rest {
                    [_, _, Value::Name(i), ..] => self.pickle.names.get(*i),
                    _ => None,
                };
                let dtype = match (storage.dtype, own) {
                    (Some(dtype), _) => Some(dtype),
                    (None, Some(Name::Dtype(dtype))) => Some(*dtype),
                    _ => None,
                };
                let view = TensorView {
                    storage: storage.key.clone(),
                    dtype: dtype.ok_or("expected a dtype for a storage of bytes")?,
                    offset: size(offset).ok_or("expected an offset of at least 0")?,
                    shape: self.pickle.sizes(shape).ok_or("expected a shape of whole numbers")?,
                    stride: self.pickle.sizes(stride).ok_or("expected strides of at least 0")?,
                };
                let i = push(&mut self.pickle.tensors, view);
                self.push(Value::Tensor(i));
                Ok(())
            }
            (Some(name), arguments) => Err(format!(
                "expected the arguments of {name:?} as torch writes them, found {} others",
                arguments.len()
            )),
            (None, _) => Err("expected a name".to_owned()),
        }
    }

    /// `("storage", type, key, location, elements)`.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let found = match self.pickle.tuple(&id) {
            Some([kind, Value::Name(class), key, ..]) => {
                let is_storage = self.pickle.text(kind) == Some("storage");
                match (is_storage, self.pickle.names.get(*class), self.pickle.text(key)) {
                    (true, Some(Name::Storage(dtype)), Some(key)) => {
                        Some(Storage { key: key.to_owned(), dtype: Some(*dtype) })
                    }
                    (true, Some(Name::Untyped), Some(key)) => {
                        Some(Storage { key: key.to_owned(), dtype: None })
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let storage = found.ok_or("expected a storage as torch names it")?;
        let i = push(&mut self.pickle.storages, storage);
        self.push(Value::Storage(i));
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<(), String> {
        let value = self.memo.get(&key).copied();
        let value = value.ok_or_else(|| format!("expected memo {key}, found none"))?;
        self.push(value);
        Ok(())
    }

    fn put(&mut self, key: u32) -> Result<(), String> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    /// Little-endian two's complement of any length up to eight bytes.
    fn push_long(&mut self, bytes: &[u8]) -> Result<(), String> {
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut word = [if negative { 0xff } else { 0 }; 8];
        match word.get_mut(..bytes.len()) {
            Some(low) => low.copy_from_slice(bytes),
            // beyond 64 bits: random states and the like, of no interest
            None => {
                self.push(Value::Plain);
                return Ok(());
            }
        }
        self.push(Value::Int(i64::from_le_bytes(word)));
        Ok(())
    }

    /// One opcode. False at the end.
    fn step(&mut self) -> Result<bool, String> {
        match self.byte()? {
            b'.' => {
                self.pickle.result = self.pop()?;
                return Ok(false);
            }
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("expected a pickle protocol up to 5, found {version}"));
                }
            }
            0x95 => drop(self.take(8)?), // frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top);
            }
            b'N' => self.push(Value::Nothing),
            0x88 | 0x89 => self.push(Value::Plain), // true, false
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()));
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()));
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Plain);
            }
            opcode @ (0x8a | 0x8b) => {
                let length = self.length(if opcode == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(length)?;
                self.push_long(bytes)?;
            }
            opcode @ (b'X' | 0x8c | 0x8d) => {
                let width = match opcode {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                };
                let length = self.length(width)?;
                let bytes = self.take(length)?;
                self.push_text(bytes)?;
            }
            // bytes, and Python 2's strings
            opcode @ (b'C' | b'U' | b'B' | b'T' | 0x8e) => {
                let width = match opcode {
                    b'C' | b'U' => 1,
                    0x8e => 8,
                    _ => 4,
                };
                let length = self.length(width)?;
                self.take(length)?;
                self.push(Value::Plain);
            }
            b')' => self.push_tuple(Vec::new()),
            opcode @ 0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_tuple(items);
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items);
            }
            b']' | 0x8f => self.push_list(Vec::new()), // a set is kept as a list
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push_list(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push_dict(&[])?,
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push_dict(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let key = self.byte()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key)?;
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).map_err(|e| e.to_string())?;
                self.put(key)?;
            }
            b'h' => {
                let key = self.byte()?;
                self.get(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.get(key)?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |value| self.pickle.text(value).map(str::to_owned);
                let (module, name) = text(&module)
                    .zip(text(&name))
                    .ok_or("expected a module and a name as texts")?;
                self.push_name(&module, &name)?;
            }
            b'R' => self.reduce()?,
            b'Q' => self.persistent()?,
            // attributes of an OrderedDict (a state dict's _metadata): left alone
            b'b' => {
                self.pop()?;
                if !matches!(self.top()?, Value::Dict(_)) {
                    return Err("expected a dict to set attributes of".to_owned());
                }
            }
            other => return Err(format!("expected an opcode of a state dict, found {other:#04x}")),
        }
        Ok(true)
    }
}
