//! The processes of a run that train one model together, as the training loop sees them: who writes,
//! which rows are whose, and sums over all.
//!
//! Every process holds the whole model and the whole list of batches, trains on its share of each
//! batch's rows, and adds its gradients to those of the others before the optimizer steps. A process
//! on its own is the case of one rank: then nothing here does anything.

use std::time::Duration;

use mmx_data::batches::Part;
use tch::{Device, Kind, Tensor};

use crate::distributed::Group;
use crate::error::{Error, Result, TorchError};

/// The time that the others wait for a rank's long work on its own: tokenizing, a checkpoint.
pub const LONG_WORK: Duration = Duration::from_secs(24 * 3600);

/// The processes of a run; one, unless there is a group.
#[derive(Clone, Debug, Default)]
pub struct Ranks(Option<(Group, Device)>);

impl Ranks {
    /// The processes of a group that adds up tensors on `device`.
    pub fn new(group: Group, device: Device) -> Self {
        Self(Some((group, device)))
    }

    /// The group, where there is more than one process.
    pub fn group(&self) -> Option<&Group> {
        self.0.as_ref().map(|(group, _)| group)
    }

    /// The device whose tensors the processes add up, where there is more than one.
    pub fn device(&self) -> Option<Device> {
        self.0.as_ref().map(|(_, device)| *device)
    }

    /// True of a process on its own.
    pub fn alone(&self) -> bool {
        self.0.is_none()
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.group().map_or(0, Group::rank)
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.group().map_or(1, Group::size)
    }

    /// True of the process that alone writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The part of every batch that is this process's.
    pub fn part(&self) -> Option<Part> {
        self.group().map(|group| Part { rank: group.rank(), ranks: group.size() })
    }

    /// Adds the tensors of all processes up, in place, on all of them. All have to call it.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn sum(&self, tensor: &mut Tensor) -> Result<()> {
        match self.group() {
            Some(group) => group.all_reduce(tensor),
            None => Ok(()),
        }
    }

    /// Adds the numbers of all processes up; all have to call it.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn sum_numbers(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let Some((group, device)) = &self.0 else { return Ok(numbers.to_vec()) };
        let doing = |e| Error::torch("numbers of all processes", &e);
        let tensor = Tensor::f_from_slice(numbers).and_then(|t| t.f_to_device(*device));
        let mut tensor = tensor.map_err(doing)?;
        group.all_reduce(&mut tensor)?;
        host_numbers(&tensor).map_err(doing)
    }

    /// The numbers that the first process gives, on all of them. All have to call it with as many.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn numbers_of_first(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        match self.is_first() {
            true => self.sum_numbers(numbers),
            false => self.sum_numbers(&vec![0.0; numbers.len()]),
        }
    }

    /// The text that the first process gives, on all of them. All have to call it.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn text_of_first(&self, text: &str) -> Result<String> {
        if self.alone() {
            return Ok(text.to_owned());
        }
        let length = self.numbers_of_first(&[text.len() as f64])?;
        let length = length.first().map_or(0, |&length| length as usize);
        let mut bytes: Vec<f64> = text.bytes().map(f64::from).collect();
        bytes.resize(length, 0.0);
        let bytes = self.numbers_of_first(&bytes)?;
        let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
        String::from_utf8(bytes).map_err(|_| Error::failed("rank 0: expected text, found none"))
    }

    /// The texts of all processes, one after the other. All have to call it; `what` they may be busy
    /// with until then takes as long as it takes.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn texts(&self, own: String, what: &str) -> Result<String> {
        let Some((group, device)) = &self.0 else { return Ok(own) };
        self.meet(what)?;
        let doing = |e| Error::torch("texts of all processes", &e);
        let mut lengths = vec![0.0; self.size()];
        lengths[self.rank()] = own.len() as f64;
        let lengths = self.sum_numbers(&lengths)?;
        let ends = |count: usize| lengths[..count].iter().sum::<f64>() as i64;
        let bytes = || {
            let all = Tensor::f_zeros([ends(self.size())], (Kind::Uint8, *device))?;
            let own = Tensor::f_from_slice(own.as_bytes())?;
            all.f_narrow(0, ends(self.rank()), own.numel() as i64)?.f_copy_(&own)?;
            Ok(all)
        };
        let mut all = bytes().map_err(doing)?;
        group.all_reduce(&mut all)?;
        let all = all.f_to_device(Device::Cpu).and_then(|all| Vec::<u8>::try_from(&all));
        String::from_utf8(all.map_err(doing)?)
            .map_err(|_| Error::failed("texts of all processes: expected UTF-8, found other bytes"))
    }

    /// The places that all processes list, one process's after the other's, `most` of each. All have
    /// to call it.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn lists(&self, own: &[(u32, u32)], most: usize) -> Result<Vec<(u32, u32)>> {
        let width = 1 + 2 * most;
        let mut numbers = vec![0.0; self.size() * width];
        let own = &own[..own.len().min(most)];
        let row = [own.len() as u32].into_iter().chain(own.iter().flat_map(|&(a, b)| [a, b]));
        for (place, number) in numbers[self.rank() * width..].iter_mut().zip(row) {
            *place = f64::from(number);
        }
        let numbers = self.sum_numbers(&numbers)?;
        let list = |row: &[f64]| -> Vec<(u32, u32)> {
            let count = row.first().map_or(0, |&count| count as usize);
            row[1..].chunks_exact(2).take(count).map(|p| (p[0] as u32, p[1] as u32)).collect()
        };
        Ok(numbers.chunks_exact(width).flat_map(list).collect())
    }

    /// Waits until all processes are here, `what` being what some of them may be busy with.
    ///
    /// # Errors
    /// A process that is gone, or is not here in time.
    pub fn meet(&self, what: &str) -> Result<()> {
        match self.group() {
            Some(group) => group.barrier(what, LONG_WORK),
            None => Ok(()),
        }
    }
}

/// Numbers of a tensor on the host, fetched at once.
pub(crate) fn host_numbers(tensor: &Tensor) -> std::result::Result<Vec<f64>, tch::TchError> {
    Vec::<f64>::try_from(&tensor.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)
}

/// What of the optimizer is divided among the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shard {
    /// Nothing: each process holds all of it.
    #[default]
    Nothing,
    /// The moments: each process holds its part, updates those weights, and gets the others'. Source:
    /// ZeRO stage 1, Rajbhandari et al. 2020.
    Optimizer,
    /// The moments and the accumulated gradient, which is added up for its owners while the backward
    /// pass runs. Source: ZeRO stage 2, same paper.
    Gradients,
}

/// The share of some rows that each of several processes has, in words.
#[must_use]
pub fn each_of(rows: usize, processes: usize) -> String {
    match rows.is_multiple_of(processes) {
        true => format!("{}", rows / processes),
        false => format!("{} or {}", rows / processes, rows / processes + 1),
    }
}

/// The type in which gradients travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduce {
    /// As they are.
    #[default]
    F32,
    /// Half the bytes, sums rounded to 8 bits.
    Bf16,
}

/// How a run is spread over processes.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// The processes.
    pub ranks: Ranks,
    /// What of the optimizer is divided among them.
    pub shard: Shard,
    /// The type in which gradients travel.
    pub reduce: Reduce,
}

impl Spread {
    /// Processes that the moments are divided among.
    #[must_use]
    pub fn moments_among(&self) -> usize {
        match self.shard {
            Shard::Nothing => 1,
            Shard::Optimizer | Shard::Gradients => self.ranks.size(),
        }
    }

    /// Processes that the accumulated gradient is divided among.
    #[must_use]
    pub fn gradients_among(&self) -> usize {
        match self.shard {
            Shard::Nothing | Shard::Optimizer => 1,
            Shard::Gradients => self.ranks.size(),
        }
    }
}
